import numpy as np
from tokenizers import Tokenizer

from tests.tiny_encoder import N_TOKENS, SPECIAL, WORDS, write_encoder
from training.augment import augment, neighbours_of

TEXTS = ("where is my order", "is my order here", "red nike shirt", "blue nike shirt")
GROUPS = ("order", "order", "search", "search")


def test_texts_are_new_different_and_repeatable():
    made = augment(TEXTS, GROUPS, 40, {}, seed=1)
    assert len(made) == len(set(made)) == 40
    assert not set(made) & set(TEXTS)
    assert made == augment(TEXTS, GROUPS, 40, {}, seed=1)
    assert made != augment(TEXTS, GROUPS, 40, {}, seed=2)


def test_texts_meet_only_texts_of_their_own_label():
    order, search = ({word for text in TEXTS[half] for word in text.split()} for half in (slice(2), slice(2, 4)))
    for text in augment(TEXTS, GROUPS, 60, {}, seed=1):
        words = set(text.split())
        assert words <= order or words <= search


def test_words_are_replaced_by_their_neighbours_alone():
    made = augment(("red",), ("search",), 10, {"red": ("blue", "green")}, seed=1)
    assert {word for text in made for word in text.split()} == {"red", "blue", "green"}
    assert {"blue", "green"} <= set(made)


def test_what_cannot_be_found_is_not_waited_for():
    assert augment(("red",), ("search",), 5, {}, seed=1) in {(), ("red red",)}


def test_neighbours_are_the_nearest_whole_words_by_cosine(tmp_path):
    tokenizer = Tokenizer.from_file(str(write_encoder(tmp_path) / "tokenizer.json"))
    angles = np.linspace(0, 3, N_TOKENS)
    table_VD = (
        np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * np.arange(1, N_TOKENS + 1)[:, None]
    )
    found = neighbours_of(["red 10 unheard", "my red shoes"], tokenizer, table_VD.astype(np.float32), n_neighbours=2)
    assert WORDS[:3] == ("red", "blue", "green")  # in this order on the circle, after the special tokens
    assert len(SPECIAL) == 4
    assert found["red"] == ("blue", "green")
    assert found.keys() == {"red", "my"}  # "10" is no word of letters; "shoes" and "unheard" are several tokens
    assert set(found["my"]) == {"is", "order"}

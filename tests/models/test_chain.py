from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.chain import TRANSITIONS, TagChain, _Texts, bio_transitions
from models.errors import BundleError

TAGS = ("O", "B-brand", "I-brand", "B-size", "I-size")
LOGITS = arrays(np.float64, st.tuples(st.integers(1, 4), st.just(5)), elements=st.floats(-5, 5, width=16))
LEARNED = arrays(np.float64, (7, 5), elements=st.floats(-3, 3, width=16))


def is_valid(tags):
    return all(
        not tag.startswith("I-") or before in {tag, f"B-{tag[2:]}"}
        for before, tag in zip(("O", *tags), tags, strict=False)
    )


def scores_of_all_valid_sequences(logits, learned):
    scores = {}
    for path in product(range(5), repeat=len(logits)):
        if is_valid([TAGS[tag] for tag in path]):
            steps = sum(learned[before, after] for before, after in pairwise(path))
            words = sum(logits[word, tag] for word, tag in enumerate(path))
            scores[path] = words + steps + learned[5, path[0]] + learned[6, path[-1]]
    return scores


@settings(deadline=None, max_examples=120)
@given(LOGITS, st.none() | LEARNED, st.sampled_from([1, 4]))
def test_the_best_of_all_valid_sequences_is_found(logits, learned, sureness):
    logits = logits * sureness
    (path,) = TagChain(TAGS, learned).best([logits])
    scores = scores_of_all_valid_sequences(logits, np.zeros((7, 5)) if learned is None else learned)
    assert scores[tuple(path)] == pytest.approx(max(scores.values()))


@settings(deadline=None, max_examples=60)
@given(LOGITS, LEARNED, st.data())
def test_a_parts_chance_is_that_of_all_sequences_with_the_same_tags_there(logits, learned, data):
    chain = TagChain(TAGS, learned)
    (path,) = chain.best([logits])
    start = data.draw(st.integers(0, len(path) - 1))
    end = data.draw(st.integers(start + 1, len(path)))
    scores = scores_of_all_valid_sequences(logits, learned)
    odds = {sequence: np.exp(score) for sequence, score in scores.items()}
    same = sum(odd for sequence, odd in odds.items() if list(sequence[start:end]) == path[start:end])
    assert chain.chances([logits], [path], [[(start, end)]]) == [pytest.approx([same / sum(odds.values())])]


@settings(deadline=None, max_examples=60)
@given(LOGITS, st.none() | LEARNED)
def test_marginals_are_those_of_all_valid_sequences(logits, learned):
    scores = scores_of_all_valid_sequences(logits, np.zeros((7, 5)) if learned is None else learned)
    odds = {sequence: np.exp(score) for sequence, score in scores.items()}
    expected = np.zeros_like(logits)
    for sequence, odd in odds.items():
        expected[range(len(logits)), sequence] += odd / sum(odds.values())
    (found,) = TagChain(TAGS, learned).marginals([logits])
    assert found == pytest.approx(expected)


@settings(deadline=None, max_examples=120)
@given(LOGITS, LEARNED, st.sampled_from([1, 4]))
def test_a_path_is_only_taken_for_the_best_where_every_other_has_a_lower_score(logits, learned, sureness):
    chain, logits = TagChain(TAGS, learned), logits * sureness
    path = logits.argmax(axis=1)
    if chain._are_best(_Texts([logits]), path).all():
        scores = scores_of_all_valid_sequences(logits, learned)
        mine = scores.pop(tuple(path.tolist()))
        assert mine > max(scores.values())


def test_what_is_sure_by_more_than_transitions_can_give_is_the_best_without_a_search():
    learned = np.zeros((7, 5))
    learned[0, 3] = 1.0
    sure = np.array([[0.0, 5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0, 0.0]])
    assert TagChain(TAGS, learned)._are_best(_Texts([sure]), sure.argmax(axis=1)).all()
    assert (
        not TagChain(TAGS, learned)._are_best(_Texts([sure / 5]), sure.argmax(axis=1)).all()
    )  # 1 ahead, and 1 to be had
    assert (
        not TagChain(TAGS, learned)._are_best(_Texts([sure[::-1]]), sure[::-1].argmax(axis=1)).all()
    )  # I-brand begins nothing


@pytest.mark.parametrize(("step", "best"), [((0, 3), [0, 3]), ((3, 0), [3, 0])])
def test_a_step_that_gives_more_than_a_tag_is_ahead_is_taken(step, best):
    learned = np.zeros((7, 5))
    learned[step] = 2.0
    assert TagChain(TAGS, learned).best([np.array([[1.0, 0.0, 0.0, 0.0, 0.0]] * 2)]) == [best]


def test_without_learned_transitions_a_parts_chance_is_the_product_over_its_words():
    logits = np.log([[0.7, 0.3], [0.2, 0.8]])
    (chances,) = TagChain(("O", "B-brand")).chances([logits], [[0, 1]], [[(0, 1), (0, 2)]])
    assert chances == pytest.approx([0.7, 0.56])


def test_a_word_that_is_surely_outside_has_no_other_tag():
    logits = np.array([[0.0, 9.0], [0.0, -np.inf], [0.0, 9.0]])
    chain = TagChain(("O", "B-brand"), np.ones((4, 2)))
    assert chain.best([logits]) == [[1, 0, 1]]
    assert chain.chances([logits], [[1, 0, 1]], [[(1, 2)]]) == [pytest.approx([1.0])]


@pytest.mark.parametrize("logit", [30.0, 0.0])
def test_odds_of_long_texts_are_neither_too_small_nor_too_large(logit):
    chain = TagChain(("O", "B-brand", "B-size"), np.full((5, 3), -2.0))
    logits = np.tile([0.0, logit, 0.0], (2000, 1))
    path = [int(logit > 0)] * 2000
    assert chain.best([logits]) == [path]
    chance = np.exp(logit) / (np.exp(logit) + 2)  # every step has the same score: words are independent
    parts = [(0, 1), (63, 64), (63, 65), (1000, 1001), (1999, 2000)]
    expected = [chance ** (end - start) for start, end in parts]
    assert chain.chances([logits], [path], [parts]) == [pytest.approx(expected)]


def test_a_continuation_without_a_beginning_among_the_tags_is_never_given():
    assert TagChain(("O", "I-brand")).best([np.array([[0.0, 9.0], [0.0, 9.0]])]) == [[0, 0]]


@settings(deadline=None, max_examples=60)
@given(st.lists(LOGITS, min_size=2, max_size=5), st.none() | LEARNED, st.sampled_from([1, 4]))
def test_what_is_said_of_a_text_does_not_depend_on_the_others_by_a_single_bit(texts, learned, sureness):
    chain = TagChain(TAGS, learned)
    texts = [logits * sureness for logits in texts]
    paths = chain.best(texts)
    assert paths == [path for logits in texts for path in chain.best([logits])]
    parts = [[(0, 1), (0, len(path)), (len(path) - 1, len(path))] for path in paths]
    alone = [chain.chances([logits], [path], [its])[0] for logits, path, its in zip(texts, paths, parts, strict=True)]
    assert chain.chances(texts, paths, parts) == alone
    for logits, together in zip(texts, chain.marginals(texts), strict=True):
        assert together.tolist() == chain.marginals([logits])[0].tolist()


def test_that_holds_for_as_many_tags_and_texts_as_are_served():
    dice, tags = np.random.default_rng(0), ("O", *(f"{part}-{kind}" for kind in range(60) for part in "BI"))
    chain = TagChain(tags, dice.normal(size=(123, 121)))
    texts = [dice.normal(scale=4, size=(n_words, 121)) for n_words in dice.integers(1, 40, size=32)]
    paths = chain.best(texts)
    assert paths == [path for logits in texts for path in chain.best([logits])]
    parts = [[(word, word + 1) for word in range(len(path))] for path in paths]
    alone = [chain.chances([logits], [path], [its])[0] for logits, path, its in zip(texts, paths, parts, strict=True)]
    assert chain.chances(texts, paths, parts) == alone


@pytest.mark.parametrize("learned", [None, np.zeros((7, 5))])
def test_a_text_without_words_has_no_tags(learned):
    chain, nothing, something = TagChain(TAGS, learned), np.empty((0, 5)), np.array([[0.0, 9.0, 0.0, 0.0, 0.0]])
    assert chain.best([nothing]) == [[]]
    assert chain.best([nothing, something, nothing]) == [[], [1], []]
    assert chain.chances([nothing, something], [[], [1]], [[], [(0, 1)]])[0] == []
    assert [len(marginals) for marginals in chain.marginals([nothing, something, nothing])] == [0, 1, 0]
    assert chain.marginals([nothing])[0].shape == (0, 5)


def test_forbidden_transitions_are_those_of_bio():
    assert bio_transitions(("O", "B-a", "I-a")).tolist() == [
        [0, 0, -np.inf],
        [0, 0, 0],
        [0, 0, 0],
        [0, 0, -np.inf],
        [0, 0, 0],
    ]


@pytest.mark.parametrize(
    "array",
    [np.zeros((6, 5), np.float32), np.zeros((7, 5), np.int64), np.full((7, 5), np.nan, np.float32)],
)
def test_transitions_of_other_tags_or_no_numbers_are_refused(tmp_path, array):
    np.save(tmp_path / TRANSITIONS, array)
    with pytest.raises(BundleError, match=r"must be finite float32 \(7, 5\)"):
        TagChain.load(tmp_path, TAGS)


def test_pickled_or_absent_transitions_are_refused(tmp_path):
    with pytest.raises(BundleError, match="must be transitions as written by training"):
        TagChain.load(tmp_path, TAGS)
    np.save(tmp_path / TRANSITIONS, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError, match="must be transitions as written by training"):
        TagChain.load(tmp_path, TAGS)

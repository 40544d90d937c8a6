"""Texts are read one way: n-grams as scikit-learn counts them, tokens and word starts as the eye does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from models.errors import BundleError, InputError
from models.manifest import NgramText
from models.text import MAX_NGRAM_CHARACTERS, NgramEncoder, SubwordEncoder, ngram_ids, split_words

# So many buckets that no two n-grams of a test share one.
WIDE = NgramText(char_ngrams=(2, 4), word_ngrams=(1, 2), n_buckets=2**50)


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pieces = ["[UNK]", "[CLS]", "[SEP]", "red", "shoe", "##s", ",", "new", "sep", "[", "]"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.add_special_tokens([AddedToken("[SEP]", special=True)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_words_carry_their_offsets() -> None:
    words = split_words("  red\tshoes, 42\u00a0cm ")
    assert [word.text for word in words] == ["red", "shoes,", "42", "cm"]
    assert [(word.start, word.end) for word in words] == [(2, 5), (6, 12), (13, 15), (16, 18)]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="abcé ß\tA1-", max_size=30))
def test_ngrams_are_those_of_scikit_learn(text: str) -> None:
    plain = text.casefold()
    analyzers = [
        CountVectorizer(analyzer="char_wb", ngram_range=(2, 3), lowercase=False).build_analyzer(),
        CountVectorizer(analyzer="word", ngram_range=(1, 2), lowercase=False, token_pattern=r"\S+").build_analyzer(),
    ]
    expected: list[int] = []
    for analyze in analyzers:
        grams = analyze(" ".join(plain.split())) if plain.strip() else []
        expected.extend(np.unique(grams, return_counts=True)[1].tolist() if len(grams) else [])
    ids, counts = ngram_ids(text, NgramText(char_ngrams=(2, 3), word_ngrams=(1, 2), n_buckets=2**50))
    assert sorted(counts.tolist()) == sorted(expected)
    assert (np.diff(ids) > 0).all()


def test_single_characters_are_counted_without_the_blanks_around_a_word() -> None:
    ids, counts = ngram_ids("aab b", NgramText(char_ngrams=(1, 1), word_ngrams=(9, 9), n_buckets=2**50))
    assert len(ids) == 2
    assert sorted(counts.tolist()) == [2.0, 2.0]


def test_a_word_and_the_same_characters_are_different_ngrams() -> None:
    characters, _ = ngram_ids("abc", NgramText(char_ngrams=(3, 3), word_ngrams=(9, 9), n_buckets=2**50))
    word, _ = ngram_ids("abc", NgramText(char_ngrams=(9, 9), word_ngrams=(1, 1), n_buckets=2**50))
    assert not set(characters) & set(word)


@pytest.mark.parametrize(
    ("one", "other"), [("Red SHOES", "red shoes"), (" red  shoes\n", "red shoes"), ("ﬁt Straße", "fit strasse")]
)
def test_case_width_and_spacing_do_not_matter(one: str, other: str) -> None:
    assert ngram_ids(one, WIDE)[0].tolist() == ngram_ids(other, WIDE)[0].tolist()


def test_ids_do_not_depend_on_the_run() -> None:
    code = (
        "from models.text import ngram_ids; from models.manifest import NgramText;"
        "print(ngram_ids('red shoes é', NgramText(char_ngrams=(2, 4), word_ngrams=(1, 2), n_buckets=1000))[0].tolist())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    narrow = NgramText(char_ngrams=(2, 4), word_ngrams=(1, 2), n_buckets=1000)
    assert runs == {f"{ngram_ids('red shoes é', narrow)[0].tolist()}\n"}


def test_ids_stay_below_the_number_of_buckets_and_counts_add_up() -> None:
    ids, counts = ngram_ids("some red shoes", NgramText(char_ngrams=(2, 2), word_ngrams=(1, 1), n_buckets=3))
    assert ids.min() >= 0
    assert ids.max() < 3
    assert counts.sum() == (5 + 4 + 6) + 3


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_text_without_ngrams_is_one_unknown_ngram_with_count_0(text: str) -> None:
    encoded = NgramEncoder(WIDE).encode(text)
    assert encoded.arrays["ngram_ids"].tolist() == [WIDE.n_buckets]
    assert encoded.arrays["ngram_counts"].tolist() == [0.0]


def test_an_ngram_text_beyond_its_longest_is_refused() -> None:
    with pytest.raises(InputError, match="at most 2000 characters, got 2001; shorten it"):
        NgramEncoder(WIDE).encode("x" * (MAX_NGRAM_CHARACTERS + 1))


def test_tokens_are_neither_padded_nor_cut_whatever_the_file_says(tokenizer_json: Path) -> None:
    encoded = SubwordEncoder(tokenizer_json, 16).encode("new red shoes, red")
    assert encoded.arrays["input_ids"].tolist() == [1, 7, 3, 4, 5, 6, 3, 2]
    assert encoded.arrays["attention_mask"].tolist() == [1] * 8


def test_words_begin_at_their_first_piece(tokenizer_json: Path) -> None:
    text = "new  shoes,red \x01 Réd"
    encoded = SubwordEncoder(tokenizer_json, 16).encode_words(text, split_words(text))
    assert [word.text for word in encoded.words] == ["new", "shoes,red", "\x01", "Réd"]
    assert encoded.first_pieces == (1, 2, -1, 6)
    assert encoded.arrays["input_ids"].tolist() == [1, 7, 4, 5, 6, 3, 3, 2]


def test_words_begin_after_the_blank_that_a_byte_level_tokenizer_counts_in(tmp_path: Path) -> None:
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġr"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("Ġ", "r")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = SubwordEncoder(tmp_path / "tokenizer.json", 16)
    text = "a red é"
    assert encoder.encode_words(text, split_words(text)).first_pieces == (0, 1, 5)
    with pytest.raises(InputError, match="at least one token"):
        encoder.encode("")


@pytest.mark.parametrize("text", ["", "   "])
def test_a_blank_text_is_its_special_tokens(tokenizer_json: Path, text: str) -> None:
    encoded = SubwordEncoder(tokenizer_json, 8).encode_words(text, split_words(text))
    assert encoded.arrays["input_ids"].tolist() == [1, 2]
    assert encoded.first_pieces == ()


def test_a_special_token_in_a_text_is_plain_text(tokenizer_json: Path) -> None:
    encoded = SubwordEncoder(tokenizer_json, 8).encode("red [SEP]")
    assert encoded.arrays["input_ids"].tolist() == [1, 3, 9, 8, 10, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red red red", "a text must have at most 4 tokens, got 5; shorten it"),
        ("x" * 81, "a text must have at most 80 characters .20 for each of 4 tokens., got 81; shorten it"),
        ("red \ud800", "lone surrogate at position 4"),
    ],
)
def test_a_text_that_is_too_long_or_broken_is_refused(tokenizer_json: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SubwordEncoder(tokenizer_json, 4).encode(text)
    assert caught.value.field == "query"


def test_a_broken_tokenizer_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json must be a tokenizer"):
        SubwordEncoder(tmp_path / "tokenizer.json", 8)


def test_a_long_text_is_read_in_windows_that_overlap_at_words(tokenizer_json: Path) -> None:
    text = "red new shoes red new red shoes red"
    encoded = SubwordEncoder(tokenizer_json, 8, max_windows=4).encode_words(text, split_words(text))
    # Pieces: red 3, new 7, shoes 4 5; six fit between CLS 1 and SEP 2, and a quarter of six (1) is shared.
    assert encoded.arrays["input_ids"].tolist() == [[1, 3, 7, 4, 5, 3, 7, 2], [1, 7, 3, 4, 5, 3, 2, 0]]
    assert encoded.arrays["attention_mask"].tolist() == [[1] * 8, [1] * 7 + [0]]
    assert encoded.word_windows == (0, 0, 0, 0, 0, 1, 1, 1)
    assert encoded.first_pieces == (1, 2, 3, 5, 6, 2, 3, 5)
    assert (encoded.n_windows, encoded.length) == (2, 8)


def test_a_text_that_fits_has_no_windows(tokenizer_json: Path) -> None:
    text = "red new shoes"
    once, several = (
        SubwordEncoder(tokenizer_json, 8, windows).encode_words(text, split_words(text)) for windows in (1, 9)
    )
    assert once.arrays["input_ids"].tolist() == several.arrays["input_ids"].tolist()
    assert (several.n_windows, several.word_windows) == (1, ())


@given(st.lists(st.sampled_from(["red", "new", "shoes", "\x01", "shoes,red"]), min_size=1, max_size=60))
def test_every_word_is_read_once_with_its_own_pieces(tokenizer_json: Path, words: list[str]) -> None:
    text = " ".join(words)
    encoded = SubwordEncoder(tokenizer_json, 9, max_windows=64).encode_words(text, split_words(text))
    whole = SubwordEncoder(tokenizer_json, 999).encode_words(text, split_words(text))
    ids, mask = (np.atleast_2d(encoded.arrays[name]) for name in ("input_ids", "attention_mask"))
    windows = encoded.word_windows or (0,) * len(words)
    assert list(windows) == sorted(windows)
    assert mask.sum(axis=1).max() <= 9
    assert ((ids * mask == 2).sum(axis=1) == 1).all()
    for window, piece, first in zip(windows, encoded.first_pieces, whole.first_pieces, strict=True):
        assert (piece < 0) == (first < 0)
        assert piece < 0 or ids[window, piece] == whole.arrays["input_ids"][first]


def test_a_text_beyond_its_windows_or_a_word_beyond_one_is_refused(tokenizer_json: Path) -> None:
    encoder = SubwordEncoder(tokenizer_json, 6, max_windows=2)
    with pytest.raises(InputError, match="at most 6 tokens in each of 2 windows, got 12; shorten it") as caught:
        encoder.encode("red " * 10)
    assert caught.value.field == "query"
    with pytest.raises(InputError, match="a word must have at most 4 tokens, got 5; shorten it"):
        encoder.encode("red shoes,shoes")
    with pytest.raises(InputError, match="at most 240 characters"):
        encoder.encode("x" * 241)


def test_numbers_of_words_are_given_to_their_tokens(tokenizer_json: Path) -> None:
    text = "red shoes \x01 new"
    encoded = SubwordEncoder(tokenizer_json, 16).encode_words(
        text, split_words(text), {"terms": np.array([5, 6, 7, 8])}
    )
    assert encoded.arrays["terms"].tolist() == [0, 5, 6, 6, 8, 0]

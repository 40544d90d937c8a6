"""A table of words gives the tokens that the tokenizer gives, or is not asked."""

from __future__ import annotations

import contextlib
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from models import words
from models.errors import ConfigError
from models.text import SubwordEncoder, open_tokenizer, split_words
from models.words import WordTable, reads_words
from training.encoder import resolve

PIECES = ("[UNK]", "[CLS]", "[SEP]", "r", "red", "##ed", "shoe", "##s", ",", "new", "sep", "[", "]", "a", "##a", "'")
SEEN = string.ascii_letters + string.digits + string.punctuation + " "


def tiny(*, normalizer: object = None, pre_tokenizer: object = None, model: type = models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer or normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.add_special_tokens([AddedToken("[SEP]", special=True), AddedToken("[CLS]", special=True)])
    return tokenizer


def written(tokenizer: Tokenizer, directory: Path) -> Path:
    path = directory / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[SubwordEncoder, SubwordEncoder, Tokenizer]]:
    """By the table, without it, and the tokenizer: of a tiny one, and of the packaged encoder where it is installed."""
    files = [written(tiny(), tmp_path_factory.mktemp("tokenizer"))]
    with contextlib.suppress(ConfigError):
        files.append(resolve("sentence-transformers/all-MiniLM-L6-v2").directory / "tokenizer.json")
    found = [(SubwordEncoder(file, 512), SubwordEncoder(file, 512), open_tokenizer(file)) for file in files]
    for _, library, _ in found:
        library._table._reads_words = False
    return found


@settings(deadline=None, max_examples=150)
@given(st.text(SEEN, max_size=40) | st.lists(st.sampled_from([*PIECES, "RED", "reds,new"]), max_size=9).map(" ".join))
def test_tokens_and_where_words_begin_are_those_of_the_tokenizer(readers: list, text: str) -> None:
    for table, library, tokenizer in readers:
        expected = tokenizer.encode(text).ids
        assert table._table.reads(text)
        assert table.encode(text).arrays["input_ids"].tolist() == expected
        by_word, aligned = (one.encode_words(text, split_words(text)) for one in (table, library))
        assert by_word.first_pieces == aligned.first_pieces
        assert by_word.arrays["input_ids"].tolist() == expected


def test_a_word_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counted:
        normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        model = models.WordPiece({"red": 0}, unk_token="red")

        def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
            return {}

        def encode(self, text: str, *, add_special_tokens: bool) -> object:
            asked.append(text)
            return tiny().encode(text, add_special_tokens=add_special_tokens)

    table = WordTable(Counted())  # type: ignore[arg-type]
    assert [table.tokens(word) for word in ("red", "reds", "red")] == [[4], [4, 7], [4]]
    assert asked == ["red", "reds"]
    # What a hostile caller can make it hold is bounded: long words are not kept, and of short ones so many.
    monkeypatch.setattr(words, "_MOST_WORDS", 3)
    for word in ("x" * 33, "new", "a", "red"):
        table.tokens(word)
    assert len(table._tokens) <= 3
    assert "x" * 33 not in table._tokens


@pytest.mark.parametrize("text", ["Réd", "red\tnew", "red\x1fnew", "red\u00a0new", "東京"])
def test_what_is_not_plain_is_left_to_the_tokenizer(text: str) -> None:
    assert not WordTable(tiny()).reads(text)


def test_tokenizers_whose_tokens_may_reach_over_a_blank_are_asked_about_whole_texts() -> None:
    assert reads_words(tiny())
    assert not reads_words(tiny(pre_tokenizer=pre_tokenizers.ByteLevel()))
    assert not reads_words(tiny(normalizer=normalizers.Replace("red new", "renew")))
    assert not reads_words(tiny(model=models.WordLevel))
    joined = tiny()
    joined.add_tokens([AddedToken("red new", special=False)])
    assert not reads_words(joined)

"""A query and a text are read together as the tokenizer's own template of a pair has it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors

from models.errors import ConfigError, InputError
from models.pairs import PairEncoder
from models.text import open_tokenizer
from tests.tiny_encoder import write_encoder
from training.encoder import resolve

TEMPLATES = ("[CLS] $A [SEP] $B [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]", "$A [SEP] $B", "[CLS] $A $B")
WORDS = ("red", "Nike", "shoes,", "size", "10", "Réd", "東京", "[SEP]", "red\tshoe", "x" * 40)
MOST = 12


def written(directory: Path, template: str, pre_tokenizer: object = None) -> Path:
    file = write_encoder(directory) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template.partition(" $B")[0], pair=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of several templates, one that no table of words can read, and the packaged one where it is installed."""
    files = [written(tmp_path_factory.mktemp("encoder"), template) for template in TEMPLATES]
    files.append(written(tmp_path_factory.mktemp("encoder"), TEMPLATES[0], pre_tokenizers.WhitespaceSplit()))
    with contextlib.suppress(ConfigError):
        files.append(resolve("sentence-transformers/all-MiniLM-L6-v2").directory / "tokenizer.json")
    return files


def read_by_library(file: Path, query: str, text: str, *, is_apart: bool) -> list[int]:
    tokenizer = open_tokenizer(file)
    if is_apart:
        first = tokenizer.encode(query).ids
        n_special = tokenizer.num_special_tokens_to_add(is_pair=False)
        tokenizer.enable_truncation(max(MOST - len(first), n_special + 1))
        return [*first, *tokenizer.encode(text).ids]
    tokenizer.enable_truncation(MOST, strategy="only_second")
    return tokenizer.encode(query, text).ids


texts = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@settings(deadline=None, max_examples=100)
@given(query=texts, titles=st.lists(texts | st.text(max_size=9), min_size=1, max_size=3), is_apart=st.booleans())
def test_rows_are_those_of_the_template_with_only_the_text_cut(
    tokenizers: list[Path], query: str, titles: list[str], is_apart: bool
) -> None:
    for file in tokenizers:
        pairs = PairEncoder(file, MOST, 0, is_apart=is_apart)
        try:
            encoded = pairs.encode(query, titles)
        except InputError:
            n_query = len(open_tokenizer(file).encode(query, add_special_tokens=False))
            assert n_query + pairs._n_special >= MOST
            continue
        lengths = encoded.arrays["attention_mask"].sum(axis=1).tolist()
        rows = [row[:n].tolist() for row, n in zip(encoded.arrays["input_ids"], lengths, strict=True)]
        assert rows == [read_by_library(file, query, title, is_apart=is_apart) for title in titles]


def test_texts_that_lose_their_end_are_counted(tokenizers: list[Path]) -> None:
    pairs = PairEncoder(tokenizers[0], MOST, 0)
    assert pairs.n_cut("red", ("red shoes", "red " * 8, "red " * 9, "x" * 1000)) == 2

"""Tagged sentences from JSON Lines and CoNLL: the same rows, and one sentence for each way to break them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.errors import DataError
from training.data.conll import read_tagging_conll
from training.data.jsonl import read_tagging_jsonl

GOOD = {"tokens": ["red", "air", "max"], "tags": ["B-colour", "B-model", "I-model"]}


def jsonl(directory: Path, *rows: object) -> Path:
    path = directory / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def conll(directory: Path, content: str) -> Path:
    path = directory / "train.conll"
    path.write_text(content, encoding="utf-8")
    return path


def test_json_rows_become_tokens_tags_and_labels(tmp_path: Path) -> None:
    rows = read_tagging_jsonl(jsonl(tmp_path, {**GOOD, "label": "search"}, {**GOOD, "label": "buy"}))
    assert rows.tokens == (("red", "air", "max"),) * 2
    assert rows.tags == (("B-colour", "B-model", "I-model"),) * 2
    assert rows.labels == ("search", "buy")
    assert read_tagging_jsonl(jsonl(tmp_path, GOOD)).labels is None


def test_conll_takes_the_first_and_last_column_of_blanks_or_tabs(tmp_path: Path) -> None:
    content = "-DOCSTART- -X- O\n\nred JJ B-colour\n# NN O\n\n\n# text = any\n\nnew\tNN\tB-city\nyork\tNN\tI-city\n"
    rows = read_tagging_conll(conll(tmp_path, content))
    assert rows.tokens == (("red", "#"), ("new", "york"))
    assert rows.tags == (("B-colour", "O"), ("B-city", "I-city"))
    assert rows.labels is None


def test_a_comment_gives_a_sentence_its_intent(tmp_path: Path) -> None:
    content = "# id: 1\n# label = search\nred B-colour\n\n# intent: order status\nwhere O\n"
    assert read_tagging_conll(conll(tmp_path, content)).labels == ("search", "order status")


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({**GOOD, "tags": ["O", "O"]}, "tokens and tags must be equally many, got 3 tokens and 2 tags"),
        ({**GOOD, "tags": ["O", "I-model", "O"]}, "I-model must follow B-model or I-model, tag 2 follows O"),
        ({**GOOD, "tags": ["B-a", "I-b", "O"]}, "I-b must follow B-b or I-b, tag 2 follows B-a"),
        ({**GOOD, "tags": ["I-a", "O", "O"]}, "I-a must follow B-a or I-a, tag 1 follows O"),
        ({**GOOD, "tags": ["B-", "O", "O"]}, "a tag must be O, B-TYPE or I-TYPE, got 'B-' as tag 1"),
        ({**GOOD, "tags": ["S-a", "O", "O"]}, "a tag must be O, B-TYPE or I-TYPE, got 'S-a' as tag 1"),
        ({**GOOD, "tags": [1, "O", "O"]}, "a tag must be O, B-TYPE or I-TYPE, got 1 as tag 1"),
        ({**GOOD, "tokens": ["red", "air max", "x"]}, "a token must not hold whitespace, got 'air max'"),
        ({**GOOD, "tokens": ["red", "", "x"]}, "a token must not be blank, got ''"),
        ({**GOOD, "tokens": ["red", 1, "x"]}, "a token must be text, got 1"),
        ({"tokens": [], "tags": []}, "tokens must hold at least one token"),
        ({"tokens": "red", "tags": ["O"]}, "tokens and tags must be lists, got str and list"),
        ({**GOOD, "label": "search"}, "label must be in every row or in none, the rows before have none"),
        ({"tokens": ["red"]}, "a row must have tags, got the keys tokens"),
    ],
)
def test_a_bad_json_row_is_named_with_its_rule(tmp_path: Path, row: object, rule: str) -> None:
    with pytest.raises(DataError, match=f"train.jsonl has 1 bad row: line 2: {rule}"):
        read_tagging_jsonl(jsonl(tmp_path, GOOD, row))


def test_a_label_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: label must be text, got None"):
        read_tagging_jsonl(jsonl(tmp_path, {**GOOD, "label": None}))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("blue O\nred\n", "line 2: a line must have a token and a tag, got 'red'"),
        ("red O\n\nblue O\nshoes I-type\n", "line 3: I-type must follow B-type or I-type, tag 2 follows O"),
        ("# label = a\nred O\n\nblue O\n", "line 4: # label must be in every sentence or in none, .* before have one"),
        ("# label =\nred O\n", "line 1: # label must not be blank"),
        ("# label = a\n\nred O\n", "line 1: tokens must hold at least one token"),
        ("new york\tB-city\n", "a token must not hold whitespace, got 'new york'"),
        ("# text = only a comment\n", "train.conll must have at least one row, it has none"),
    ],
)
def test_a_bad_sentence_is_named_by_its_first_line(tmp_path: Path, content: str, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        read_tagging_conll(conll(tmp_path, content))

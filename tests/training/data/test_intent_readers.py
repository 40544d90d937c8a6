"""Labelled texts from JSON Lines and CSV: the same rows, and one sentence for each way to break them."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DataError
from training.data.csv_file import read_intent_csv
from training.data.jsonl import read_intent_jsonl

VISIBLE = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(str.strip)


@given(texts=st.lists(VISIBLE, min_size=1, max_size=5), is_ascii=st.booleans())
def test_json_lines_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], is_ascii: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    lines = [json.dumps({"text": text, "label": "a", "row_id": 7}, ensure_ascii=is_ascii) for text in texts]
    content = ("\n".join(lines) + "\n\n").encode()
    path.write_bytes(content)
    rows = read_intent_jsonl(path)
    assert rows.texts == tuple(texts)
    assert rows.labels == ("a",) * len(texts)
    assert (rows.file, rows.sha256) == ("train.jsonl", hashlib.sha256(content).hexdigest())


@given(texts=st.lists(VISIBLE.map(lambda text: f'{text},"\n{text}'), min_size=1, max_size=5))
def test_csv_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("rows") / "train.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "text"])
        writer.writerows([1, "a", text] for text in texts)
    rows = read_intent_csv(path)
    assert rows.texts == tuple(texts)
    assert rows.labels == ("a",) * len(texts)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('{"text": "red", "label"', "line 2: a row must be one JSON object"),
        ("[1, 2]", "line 2: a row must be one JSON object, got '.1, 2.'"),
        ("[" * 100_000, "line 2: a row must be one JSON object"),
        ('{"text": "red", "label": "a", "label": "b"}', "a key occurs twice"),
        ('{"query": "red", "label": "a"}', "line 2: a row must have text, got the keys query, label"),
        ("{}", "line 2: a row must have text and label, got the keys none"),
        ('{"text": "red", "label": NaN}', "line 2: label must be text, got nan"),
        ('{"text": "red", "label": null}', "line 2: label must be text, got None"),
        ('{"text": 5, "label": "a"}', "line 2: text must be text, got 5"),
        ('{"text": "red", "label": " "}', "line 2: label must not be blank, got ' '"),
        ('{"text": "", "label": "a"}', "line 2: text must not be blank, got ''"),
        ('{"text": "a\\ud800", "label": "a"}', "line 2: text must be whole Unicode characters"),
    ],
)
def test_a_bad_json_line_is_named_with_its_rule(tmp_path: Path, line: str, rule: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"text": "ok", "label": "a"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=rule) as caught:
        read_intent_jsonl(path)
    assert caught.value.message.startswith("train.jsonl has 1 bad row: ")
    assert caught.value.message.endswith("; correct it")
    assert "\n" not in caught.value.message
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("query,intent\nred,a\n", "test.csv must have one column text, its header is query, intent"),
        ("text,label,label\nred,a,b\n", "must have one column label"),
        ("text,label\nred\n", "line 2: a row must have 2 fields as the header has, got 1"),
        ("text,label\nred,\n", "line 2: label must not be blank"),
        ("text,label\nred,nan\n", "line 2: label must not be NaN"),
        ('text,label\n"red,a\n', "test.csv must be CSV, line 2 is not"),
        ("text,label\n", "test.csv must have at least one row, it has none"),
    ],
)
def test_a_bad_csv_is_named_with_its_rule(tmp_path: Path, content: str, rule: str) -> None:
    path = tmp_path / "test.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rule):
        read_intent_csv(path)


def test_rows_with_lists_of_labels_are_read_and_an_empty_list_is_out_of_scope(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(
        '{"text": "red shoes", "labels": ["shoes", "apparel"]}\n'
        '{"text": "how are you", "labels": []}\n'
        '{"text": "nike", "labels": ["brand"]}\n'
    )
    rows = read_intent_jsonl(path)
    assert rows.label_sets == (("shoes", "apparel"), (), ("brand",))
    assert rows.labels == ("apparel + shoes", "oos", "brand")
    assert rows.each_label() == ("shoes", "apparel", "brand")
    assert rows.take(np.array([2, 0])).label_sets == (("brand",), ("shoes", "apparel"))


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ('{"text": "x", "label": "a"}', "line 2: a row must have labels, got the keys text, label"),
        ('{"text": "x", "labels": "a"}', "line 2: labels must be a list, got 'a'"),
        ('{"text": "x", "labels": ["a", " "]}', "line 2: a label must not be blank"),
        ('{"text": "x", "labels": ["a", "a"]}', "line 2: labels must hold each label once"),
        (
            '{"text": "x", "labels": ["a", "oos"]}',
            "line 2: labels of a text that is out of scope must be an em",
        ),
    ],
)
def test_a_bad_list_of_labels_is_named_with_its_rule(tmp_path: Path, row: str, rule: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"text": "ok", "labels": ["a"]}}\n{row}\n')
    with pytest.raises(DataError, match=rule):
        read_intent_jsonl(path)

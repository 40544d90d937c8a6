"""Judged pairs of query and title: lists as a gateway would get them, and one sentence for each way to break them."""

import gzip
import json
import math

import numpy as np
import pytest

from models.errors import DataError
from training.data.pairs import read_pairs_jsonl


def pair(query_id="q1", query="red shoes", doc_id="d1", title="Red shoes", label=1, **more):
    return {"query_id": query_id, "query": query, "doc_id": doc_id, "title": title, "label": label, **more}


def written(path, *rows):
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_rows_of_a_query_become_one_list_wherever_they_stand(tmp_path, name):
    rows = read_pairs_jsonl(
        written(
            tmp_path / name,
            pair(label=2, brand="ignored"),
            pair("q2", "hat", "d1", "Hat", 0),
            pair(doc_id="d2", title="Blue shoes", label=0),
            pair("q2", "hat", "d9", "", 3.0),
        )
    )
    assert rows.query_ids == ("q1", "q2")
    assert [(request.text, request.ids, request.texts) for request in rows.lists] == [
        ("red shoes", ("d1", "d2"), ("Red shoes", "Blue shoes")),
        ("hat", ("d1", "d9"), ("Hat", "")),
    ]
    assert [labels.tolist() for labels in rows.labels] == [[2, 0], [0, 3]]
    assert (rows.feature_names, rows.file) == ((), name)


def test_numbers_go_to_their_columns_and_what_is_absent_stays_missing(tmp_path):
    rows = read_pairs_jsonl(
        written(
            tmp_path / "train.jsonl",
            pair(features={"price": 5, "stock": None}),
            pair(doc_id="d2", features={"stock": 0.5, "age": math.nan}),
            pair(doc_id="d3"),
        )
    )
    assert rows.feature_names == ("price", "stock", "age")
    (request,) = rows.lists
    np.testing.assert_array_equal(request.features["price"], [5, np.nan, np.nan])
    np.testing.assert_array_equal(request.features["stock"], [np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(request.features["age"], [np.nan, np.nan, np.nan])
    assert request.features["price"].dtype == np.float32


def test_a_document_may_be_judged_twice_and_both_judgments_count(tmp_path):
    rows = read_pairs_jsonl(written(tmp_path / "train.jsonl", pair(label=3), pair(doc_id="d2"), pair(label=1)))
    assert rows.lists[0].ids == ("d1", "d2", "d1")
    assert rows.labels[0].tolist() == [3, 1, 1]


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (pair(), "must not occur twice"),
        (pair(title="Other shoes", label=0), "must be one document"),
        (pair(query="blue shoes", doc_id="d2"), "must have one query"),
        (pair(doc_id="d2", label=math.nan), "label must be a whole number from 0 to 31, got nan"),
        (pair(doc_id="d2", label=-1), "label must be"),
        (pair(doc_id="d2", label=0.5), "label must be"),
        (pair(doc_id="d2", label="1"), "label must be"),
        (pair(doc_id="d2", label=True), "label must be"),
        (pair(doc_id="d2", label=None), "label must be"),
        (pair(doc_id=None), "doc_id must be text"),
        (pair(query_id=True), "query_id must be text"),
        (pair("q2", " "), "query must not be blank"),
        (pair(doc_id="d2", title=7), "title must be text"),
        (pair(doc_id="d2", features=[1]), "features must map"),
        (pair(doc_id="d2", features={"price": "5"}), "'price' must be a float32 number"),
        (pair(doc_id="d2", features={"price": math.inf}), "'price' must be a float32 number"),
        (pair(doc_id="d2", features={"price": 1e39}), "'price' must be a float32 number"),
        ({"query_id": "q1", "doc_id": "d2"}, "a row must have query and title and label"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_rule(tmp_path, bad, rule):
    with pytest.raises(DataError, match=rule) as caught:
        read_pairs_jsonl(written(tmp_path / "train.jsonl", pair(), bad))
    assert "train.jsonl has 1 bad row: line 2: " in caught.value.message


def test_the_first_bad_rows_are_named_and_all_are_counted(tmp_path):
    rows = [pair(doc_id=f"d{number}", label=-1) for number in range(5)]
    with pytest.raises(DataError, match=r"5 bad rows: line 1: .*; line 2: .*; line 3: .*; and 2 more"):
        read_pairs_jsonl(written(tmp_path / "train.jsonl", *rows))

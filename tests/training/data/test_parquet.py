"""Parquet lists: nulls stay missing, texts make pairs, and one sentence for each broken rule."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import DataError
from training.data.parquet import read_parquet

GOOD: dict[str, Any] = {
    "query_id": ["b", "a", "b"],
    "doc_id": [1, 2, 3],
    "label": [2, 0, 1],
    "price": [9.5, None, float("nan")],
    "in_stock": [True, None, False],
}


def write(directory: Path, **columns: Any) -> Path:
    path = directory / "train.parquet"
    pq.write_table(pa.table({name: column for name, column in {**GOOD, **columns}.items() if column is not None}), path)
    return path


def test_rows_become_lists_and_null_and_nan_are_missing(tmp_path: Path) -> None:
    rows = read_parquet(write(tmp_path))
    assert rows.query_ids == ("b", "a")
    assert [one.ids for one in rows.lists] == [("1", "3"), ("2",)]
    assert [labels_D.tolist() for labels_D in rows.labels] == [[2, 1], [0]]
    assert rows.feature_names == ("price", "in_stock")
    np.testing.assert_array_equal(rows.lists[0].features["price"], np.array([9.5, np.nan], "f4"))
    np.testing.assert_array_equal(rows.lists[0].features["in_stock"], np.array([1, 0], "f4"))
    np.testing.assert_array_equal(rows.lists[1].features["in_stock"], np.array([np.nan], "f4"))
    assert rows.lists[0].texts is None


def test_query_and_title_make_the_rows_text_pairs(tmp_path: Path) -> None:
    rows = read_parquet(write(tmp_path, query=["shoe", "hat", "shoe"], title=["red shoe", "", "boot"]))
    assert [(one.text, one.texts) for one in rows.lists] == [("shoe", ("red shoe", "boot")), ("hat", ("",))]
    assert rows.feature_names == ("price", "in_stock")


def test_ids_may_be_integers_or_dictionaries_and_labels_and_features_any_number(tmp_path: Path) -> None:
    rows = read_parquet(
        write(
            tmp_path,
            query_id=pa.array([7, 8, 7], pa.int32()),
            doc_id=pa.array(["x", "y", "z"]).dictionary_encode(),
            label=[2.0, 0.0, 1.0],
            price=pa.array([Decimal("1.50"), None, Decimal("2.25")]),
            in_stock=pa.array([1, 2, None], pa.uint8()),
        )
    )
    assert rows.query_ids == ("7", "8")
    assert rows.lists[0].ids == ("x", "z")
    np.testing.assert_array_equal(rows.lists[0].features["price"], np.array([1.5, 2.25], "f4"))
    np.testing.assert_array_equal(rows.lists[0].features["in_stock"], np.array([1, np.nan], "f4"))


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"label": None}, "must have the columns query_id, doc_id, label, it lacks label"),
        ({"title": ["a", "b", "c"]}, "must have both query and title or neither"),
        ({"price": ["9", "8", "7"]}, "price must be a column of numbers, train.parquet has string"),
        ({"query_id": [1.0, 2.0, 1.0]}, "query_id must be a column of text or integers"),
        ({"query": [1, 2, 1], "title": ["a", "b", "c"]}, "query must be a column of text"),
        ({"label": [2, None, 1]}, "row 2: a label must be an integer from 0 to 31, got nan"),
        ({"label": [2, -1, 1]}, "row 2: a label must be an integer from 0 to 31, got -1"),
        ({"label": [2, 0.5, 1]}, "row 2: a label must be an integer from 0 to 31, got 0.5"),
        ({"label": ["2", "1", "0"]}, "label must be a column of numbers"),
        ({"price": [1.0, 1e300, 2.0]}, "row 2: feature price must be finite in 32 bits or missing"),
        ({"query_id": ["b", None, "b"]}, "row 2: query_id must be text, got None"),
        ({"doc_id": [1, None, 3]}, "row 2: doc_id must be text, got None"),
        ({"doc_id": [1, 2, 1]}, "row 3: a document must be once in the list of query b, 1 is in row 1 too"),
        (
            {"query": ["x", "y", "z"], "title": ["a", "b", "c"]},
            "row 3: a query_id must have one text, b has 'x' and 'z'",
        ),
    ],
)
def test_a_broken_rule_is_named(tmp_path: Path, columns: dict[str, Any], rule: str) -> None:
    with pytest.raises(DataError) as caught:
        read_parquet(write(tmp_path, **columns))
    assert rule in caught.value.message


def test_a_file_without_rows_and_one_that_is_no_parquet_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match="at least one row"):
        read_parquet(path)
    path.write_bytes(b"query_id,doc_id\n")
    with pytest.raises(DataError, match="must be a Parquet file"):
        read_parquet(path)

"""Click logs: impressions become lists with their clicks, the same from both formats, and broken rules are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import DataError
from training import ranking
from training.config import RankingConfig
from training.data.clicks import is_click_log, read_clicks_jsonl, read_clicks_parquet
from training.data.splits import RankingRows

CONFIG = RankingConfig.model_validate({"task": "ranking", "model": {"kind": "xgboost"}})


def impression(query: str, doc: str, position: int, clicked: int, **features: float | None) -> dict[str, Any]:
    return {"query_id": query, "doc_id": doc, "position": position, "clicked": clicked, "features": features}


ROWS = [
    impression("b", "x", 1, 0, price=9.0),
    impression("b", "y", 2, 1, price=None),
    impression("a", "x", 1, 1, price=3.0),
    impression("b", "y", 1, 1, price=5.0),
    impression("b", "x", 2, 0, price=8.0),
    impression("b", "z", 3, 0),
]


def write_jsonl(directory: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> Path:
    path = directory / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(directory: Path, rows: list[dict[str, Any]]) -> Path:
    path = directory / "train.parquet"
    flat = [{**{key: row[key] for key in row if key != "features"}, **row.get("features", {})} for row in rows]
    names = dict.fromkeys(key for row in flat for key in row)
    pq.write_table(pa.table({name: [row.get(name) for row in flat] for name in names}), path)
    return path


def assert_is_expected(rows: RankingRows) -> None:
    assert rows.query_ids == ("b", "a")
    assert [one.ids for one in rows.lists] == [("x", "y", "z"), ("x",)]
    np.testing.assert_array_equal(rows.lists[0].features["price"], np.array([8, 5, np.nan], "f4"))
    assert rows.clicks is not None
    first, second = rows.clicks
    assert first.documents.tolist() == [0, 1, 1, 0, 2]
    assert first.positions.tolist() == [1, 2, 1, 2, 3]
    assert first.clicked.tolist() == [0, 1, 1, 0, 0]
    assert (second.documents.tolist(), second.clicked.tolist()) == ([0], [1])


def test_impressions_become_a_list_a_query_and_a_document_has_the_features_of_its_last_row(tmp_path: Path) -> None:
    assert_is_expected(read_clicks_jsonl(write_jsonl(tmp_path, ROWS)))
    assert_is_expected(read_clicks_parquet(write_parquet(tmp_path, ROWS)))


def test_taking_queries_takes_their_clicks(tmp_path: Path) -> None:
    rows = read_clicks_jsonl(write_jsonl(tmp_path, ROWS)).take(np.array([1]))
    assert rows.clicks is not None
    assert [one.positions.tolist() for one in rows.clicks] == [[1]]


def test_texts_come_with_the_rows(tmp_path: Path) -> None:
    rows = [{**row, "query": f"q {row['query_id']}", "title": f"t {row['doc_id']}"} for row in ROWS]
    for read in (read_clicks_jsonl(write_jsonl(tmp_path, rows)), read_clicks_parquet(write_parquet(tmp_path, rows))):
        assert [one.text for one in read.lists] == ["q b", "q a"]
        assert read.lists[0].texts == ("t x", "t y", "t z")
        assert read.feature_names == ("price",)


def test_a_log_is_told_from_judged_rows(tmp_path: Path) -> None:
    assert is_click_log(write_jsonl(tmp_path, ROWS))
    assert is_click_log(write_parquet(tmp_path, ROWS))
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress(write_jsonl(tmp_path, ROWS).read_bytes()))
    assert is_click_log(packed)
    assert not is_click_log(write_jsonl(tmp_path, [{"query_id": 1, "label": 1}], "judged.jsonl"))
    (tmp_path / "no.parquet").write_bytes(b"clicked")
    assert not is_click_log(tmp_path / "no.parquet")
    with pytest.raises(DataError, match="must be a Parquet file"):
        ranking.read_file(tmp_path / "no.parquet", CONFIG)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"position": 0}, "position must be a whole number from 1 to 1000, got 0"),
        ({"position": 1.5}, "position must be a whole number from 1 to 1000, got 1.5"),
        ({"clicked": 2}, "clicked must be 0 or 1, got 2"),
        ({"query_id": ""}, "query_id must"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], rule: str) -> None:
    rows = [ROWS[0], {**ROWS[1], **change}, *ROWS[2:]]
    with pytest.raises(DataError, match="line 2: " + rule):
        read_clicks_jsonl(write_jsonl(tmp_path, rows))
    with pytest.raises(DataError, match="row 2: " + rule):
        read_clicks_parquet(write_parquet(tmp_path, rows))


def test_a_session_shows_one_document_at_a_position(tmp_path: Path) -> None:
    rows = [{**row, "session_id": "s" + str(number // 4)} for number, row in enumerate(ROWS)]
    rule = "a session must show one document at a position, s0 shows another one at position 1"
    with pytest.raises(DataError, match=f"line 4: {rule} in line 1"):
        read_clicks_jsonl(write_jsonl(tmp_path, rows))
    with pytest.raises(DataError, match=f"row 4: {rule} in row 1"):
        read_clicks_parquet(write_parquet(tmp_path, rows))


def test_a_key_is_in_every_row_or_in_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"session_id must be in every row of train.jsonl or in none, 1 of 6 have it"):
        read_clicks_jsonl(write_jsonl(tmp_path, [{**ROWS[0], "session_id": "s"}, *ROWS[1:]]))

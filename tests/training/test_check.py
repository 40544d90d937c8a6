"""What `rankyard check data` says before anything is trained."""

import json
from pathlib import Path

import pytest

from models.errors import DataError
from training.check import check_data

ROWS = [{"text": f"find {n}", "label": "search"} for n in range(9)] + [{"text": "where is it", "label": "order"}]


def write(directory: Path, **splits: list[dict[str, object]]) -> Path:
    for split, rows in splits.items():
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_figures_and_warnings_of_labelled_texts(tmp_path: Path) -> None:
    strange = [{"text": "pay", "label": "payment"}]
    report = check_data(write(tmp_path, train=ROWS, valid=ROWS[:1] + strange, test=ROWS[:2]))
    assert report.family == "intent"
    assert {name: figures["rows"] for name, figures in report.splits.items()} == {"train": 10, "valid": 2, "test": 2}
    assert report.splits["train"]["words"] == {"min": 2, "median": 2, "max": 3}
    said = " | ".join(report.warnings)
    assert "1 of 2 valid examples stand in train too (such as 'find 0')" in said
    assert "2 of 2 test examples stand in train too" in said
    assert "1 labels have fewer than 5 training rows (order)" in said
    assert "1 labels of valid are not in train (payment)" in said


def test_the_family_is_told_by_the_first_row(tmp_path: Path) -> None:
    tagged = [{"tokens": ["red", "shoe"], "tags": ["B-colour", "O"]}] * 4
    assert check_data(write(tmp_path, train=tagged, valid=tagged)).family == "tagging"
    pairs = [
        {"query_id": q, "query": q, "doc_id": d, "title": d, "label": int(d == "a")} for q in "xyz" for d in ("a", "b")
    ]
    assert check_data(write(tmp_path, train=pairs, valid=pairs)).family == "ranking"


def test_rows_of_no_family_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its first one has colour"):
        check_data(write(tmp_path, train=[{"colour": "red"}]))

"""What `rankyard check data` says before anything is trained."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from models.errors import DataError
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.tiny_encoder import write_encoder
from training.check import check_data, log_data

ROWS = [{"text": f"find {n}", "label": "search"} for n in range(9)] + [{"text": "where is it", "label": "order"}]


def write(directory: Path, **splits: list[dict[str, object]]) -> Path:
    directory.mkdir(exist_ok=True)
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
    assert "1 of the 2 valid texts (50.0 %) stands in train too" in said
    assert "2 of the 2 test texts (100.0 %) stand in train too" in said
    assert "1 label has fewer than 5 train rows (order)" in said
    assert "1 rows of valid.jsonl have a label that train does not have (payment)" in said


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


def test_text_pairs_in_parquet_are_told_from_numeric_features(tmp_path: Path) -> None:
    pairs = {
        "query_id": ["x", "x", "y", "y"], "doc_id": list("abab"), "label": [1, 0, 0, 1],
        "query": ["red", "red", "blue", "blue"], "title": ["red hat", "blue hat", "red hat", "blue hat"],
    }  # fmt: skip
    for name, columns in (("texts", pairs), ("numbers", {**pairs, "price": [1.0, 2.0, None, 4.0]})):
        (tmp_path / name).mkdir()
        for split in ("train", "valid"):
            pq.write_table(pa.table(columns), tmp_path / name / f"{split}.parquet")
    texts, numbers = check_data(tmp_path / "texts"), check_data(tmp_path / "numbers")
    assert (texts.splits["train"]["features"], numbers.splits["train"]["features"]) == (0, 1)
    assert "duplicates_train_valid" in {finding.rule for finding in texts.findings}
    assert "missing_features" in {finding.rule for finding in numbers.findings}


def test_a_configuration_says_what_is_too_long(tmp_path: Path) -> None:
    rows = [{"text": "red " * 200, "label": "search"}, *ROWS]
    write(tmp_path, train=rows, valid=ROWS)
    config = tmp_path / "short.yaml"
    encoder = write_encoder(tmp_path / "encoder")
    config.write_text(f"task: intent\nmodel: {{kind: transformer, encoder: {encoder}, max_tokens: 64}}\n")
    found = {finding.rule: finding for finding in check_data(tmp_path, str(config)).findings}
    assert found["too_long_train"].examples[0]["tokens"] == 202
    assert "too_long_train" not in {finding.rule for finding in check_data(tmp_path).findings}


def test_the_report_is_kept_in_a_run(tmp_path: Path) -> None:
    write(tmp_path / "shop", train=ROWS, valid=ROWS[:1], test=ROWS[:2])
    tracking = Tracking(Workspace(tmp_path / "workspace"))
    report = check_data(tmp_path / "shop")
    run = MlflowClient(tracking.uri).get_run(log_data(report, tmp_path / "shop", tracking))
    assert (run.info.run_name, run.info.status) == ("shop", "FINISHED")
    assert run.data.metrics["duplicates_train_test"] == 2
    page = Path(run.info.artifact_uri.removeprefix("file://")) / "data" / "report.html"
    assert page.read_text() == report.html()
    assert "2 of the 2 test texts" in run.data.tags["mlflow.note.content"]


def test_a_click_log_is_told_by_position_and_its_relevance_is_not_counted_as_judged(tmp_path: Path) -> None:
    shown = [
        {"query_id": q, "doc_id": d, "position": p, "clicked": int(p == 1), "features": {"price": len(q) + p}}
        for q in ("a", "bb", "ccc") for p, d in enumerate("xyz", start=1)
    ]  # fmt: skip
    found = {finding.rule: finding for finding in check_data(write(tmp_path, train=shown, valid=shown)).findings}
    assert found["clicks"].sentence == "train is a click log: 9 impressions at 3 positions, 33.3 % of them clicked"
    assert found["clicks"].chart is not None
    assert found["clicks"].chart.series["train"] == (100.0, 0.0, 0.0)
    assert not {"relevance", "contradictions", "judgement_noise"} & set(found)


def test_each_of_several_labels_is_counted(tmp_path: Path) -> None:
    rows = [{"text": f"red shoe {n}", "labels": ["clothing", "shoes"]} for n in range(6)]
    rows += [{"text": f"hat {n}", "labels": ["clothing"]} for n in range(5)]
    report = check_data(write(tmp_path, train=rows, valid=rows[:3]))
    assert report.splits["train"]["most_frequent"] == {"clothing": 11, "shoes": 6}
    found = {finding.rule: finding for finding in report.findings}
    assert found["balance_label"].sentence.startswith("2 labels in train, from 6 rows (shoes) to 11 (clothing)")

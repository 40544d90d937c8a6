"""The whole line with real parts: what it registers, and what it leaves when a step says no."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from models.errors import DataError, ParityError
from models.session import OnnxSession
from registry import golden
from registry.bundle import MODEL_INT8, open_bundle
from registry.evaluation import Report
from registry.predictions import Predictions
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.tiny_encoder import write_encoder
from training import line, proof
from training.config import parse
from training.quantization import quantize
from training.terminal import Terminal

COLOURS, SHOES = ("red", "blue", "green"), ("shoe", "shirt")


def rows(start: int, n: int) -> list[dict[str, Any]]:
    """Searches with a colour, and questions about orders, in turn."""
    made = []
    for i in range(start, start + n):
        colour, thing = COLOURS[i % 3], SHOES[i % 2]
        if i % 2:
            tokens, tags, label = [colour, thing, "size", "10"], ["B-colour", "O", "O", "B-size"], "search"
        else:
            tokens, tags, label = ["where", "is", "my", colour, "order"], ["O", "O", "O", "B-colour", "O"], "order"
        made.append({"tokens": tokens, "tags": tags, "label": label})
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rows")
    for split, n in (("train", 60), ("valid", 24), ("test", 30)):
        made = rows(0, n)
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return directory


@pytest.fixture(scope="module")
def texts(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("texts")
    for file in data.iterdir():
        made = [json.loads(row) for row in file.read_text().splitlines()]
        lines = [json.dumps({"text": " ".join(row["tokens"]), "label": row["label"]}) + "\n" for row in made]
        (directory / file.name).write_text("".join(lines))
    return directory


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return Tracking(Workspace(tmp_path_factory.mktemp("workspace")))


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    encoder = write_encoder(tmp_path_factory.mktemp("encoder"))
    return {
        "task": "tagging",
        "model": {"kind": "transformer", "encoder": str(encoder), "max_tokens": 32},
        "training": {"epochs": 2, "learning_rate": 3e-3},
        "evaluate": {"n_resamples": 100},
        "quantize": {"max_loss": 1.0},
    }


LINEAR = {"task": "intent", "model": {"kind": "linear"}, "evaluate": {"n_resamples": 100}}


def order(raw: dict[str, Any], data: Path, name: str) -> line.Order:
    return line.Order(parse(raw, raw["task"]), data, name)


def test_a_joint_model_goes_through_every_step(tracking: Tracking, data: Path, joint: dict[str, Any]) -> None:
    trained = line.run(order(joint, data, "shop-query"), tracking, Terminal())
    bundle = open_bundle(trained.bundle.path)
    assert set(bundle.manifest.files) == {
        "model.onnx", "model.int8.onnx", "tokenizer.json", "transitions.npy", "evaluation.json", "predictions.npz",
            "golden.json",
    }  # fmt: skip
    assert (bundle.manifest.labels, bundle.manifest.tags) == (
        ("order", "search"),
        ("O", "B-colour", "B-size"),
    )
    assert {split: part.rows for split, part in bundle.manifest.data.items()} == {"train": 60, "valid": 24, "test": 30}
    report = Report.load(bundle.path)
    assert set(report.variants) == {"float32", "int8"}
    assert report.parity.n_examples == 24
    assert report.parity.n_changed_decisions == 0
    assert set(report.served.latency) == {"batch_1", "batch_8", "batch_32"}
    assert len(Predictions.load(bundle.path)) == 30
    for variant in ("float32", "int8"):
        golden.check(bundle, variant, OnnxSession(bundle.model_file(variant)).run)
    assert tracking.resolve("shop-query@candidate").digest == bundle.digest
    assert trained.metrics["test"] == report.served.quality["test"].metrics


@pytest.mark.parametrize(("refit", "judged"), [(False, ["valid", "test"]), (True, ["test"])])
def test_valid_is_not_reported_once_a_model_has_learned_from_it(
    tracking: Tracking, tmp_path: Path, *, refit: bool, judged: list[str]
) -> None:
    rng = np.random.default_rng(3)
    for split, n_queries in (("train", 30), ("valid", 12), ("test", 12)):
        rows_ = [f"{int(x > 0)} qid:{i // 4} 1:{x:.4f}" for i, x in enumerate(rng.normal(size=4 * n_queries))]
        (tmp_path / f"{split}.txt").write_text("\n".join(rows_) + "\n")
    raw = {
        "task": "ranking",
        "model": {"kind": "xgboost"},
        "training": {"n_trees": 5, "refit": refit},
        "evaluate": {"n_resamples": 100},
    }
    trained = line.run(order(raw, tmp_path, f"refit-{refit}".lower()), tracking, Terminal())
    assert list(trained.metrics) == judged
    assert len(Predictions.load(trained.bundle.path)) == 12
    golden.check(trained.bundle, "float32", OnnxSession(trained.bundle.model_file()).run)


def test_a_joint_model_that_learned_from_valid_is_served_and_judged_on_test_alone(
    tracking: Tracking, data: Path, joint: dict[str, Any]
) -> None:
    refit = {**joint, "training": {**joint["training"], "refit": True}}
    trained = line.run(order(refit, data, "refitted"), tracking, Terminal())
    assert list(trained.metrics) == ["test"]
    assert set(Report.load(trained.bundle.path).variants) == {"float32", "int8"}
    for variant in ("float32", "int8"):
        golden.check(trained.bundle, variant, OnnxSession(trained.bundle.model_file(variant)).run)
    finished = MlflowClient(tracking.uri).get_run(trained.run_id).data
    assert finished.params["fit.refitted_rows"] == "84"
    assert {"train_loss", "refit_train_loss"} <= set(finished.metrics)


def test_what_was_trained_is_not_lost_with_a_line_that_is_stopped_after_it(
    tracking: Tracking,
    data: Path,
    joint: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped = order(joint, data, "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(proof.Proof, "run", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            line.run(stopped, tracking, Terminal())
    checkpoint = tracking.workspace.checkpoints / "stopped"
    assert checkpoint.exists()
    line.run(replace(stopped, resume=True), tracking, Terminal())
    assert "training goes on from step 4 of 4" in capsys.readouterr().err
    assert not checkpoint.exists()


def _interrupted(_proof: proof.Proof, _fitted: Any) -> None:
    raise KeyboardInterrupt


def test_a_joint_model_and_an_intent_model_are_judged_on_the_same_examples(
    tracking: Tracking, data: Path, texts: Path, joint: dict[str, Any]
) -> None:
    intent = line.run(order(LINEAR, texts, "pair"), tracking, Terminal())
    tagger = line.run(order(joint, data, "pair"), tracking, Terminal())
    ours, theirs = (Predictions.load(one.bundle.path) for one in (intent, tagger))
    here, there = ours.paired(theirs)
    assert len(here) == len(there) == 30
    np.testing.assert_array_equal(np.array(ours.example_ids)[here], np.array(theirs.example_ids)[there])


def test_an_export_that_answers_otherwise_stops_the_line(
    tracking: Tracking, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = proof.answer

    def bent(*arguments: Any) -> list[Any]:
        answered = honest(*arguments)
        answered[0].outputs["intent_logits"][:] += 0.5  # as an exporter with a wrong constant would
        return answered

    monkeypatch.setattr(proof, "answer", bent)
    before = sorted(tracking.workspace.bundles.iterdir())
    with pytest.raises(ParityError, match=r"must answer as its source to 0.0001.*got 0.5.*nothing was registered"):
        line.run(order(LINEAR, texts, "bent"), tracking, Terminal())
    assert "bent" not in [model["name"] for model in tracking.models()]
    assert sorted(tracking.workspace.bundles.iterdir()) == before


def test_int8_beyond_its_budget_is_left_out_and_said(
    tracking: Tracking,
    data: Path,
    joint: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    honest = quantize.quantize

    def coarse(float32: Path, int8: Path, *arguments: Any, **settings: Any) -> None:
        """A quantizer that loses everything: the network without its weights."""
        import onnx
        from onnx import numpy_helper

        honest(float32, int8, *arguments, **settings)
        model = onnx.load(str(float32))
        for tensor in model.graph.initializer:
            if "weight" in tensor.name.lower() or len(tensor.dims) == 2:
                tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
        onnx.save(model, str(int8))

    monkeypatch.setattr(quantize, "quantize", coarse)
    strict = joint | {"quantize": {"max_loss": 0.01}, "training": joint["training"] | {"epochs": 6}}
    trained = line.run(order(strict, data, "coarse"), tracking, Terminal())
    assert MODEL_INT8 not in trained.bundle.manifest.files
    assert trained.report.served_variant == "float32"
    assert trained.report.quantization is not None
    assert not trained.report.quantization.kept
    assert "above its budget of 0.01: float32 is served" in capfd.readouterr().err


def test_half_precision_is_written_and_proved_where_it_is_asked_for(
    tracking: Tracking, data: Path, joint: dict[str, Any]
) -> None:
    settings = {"quantize": {"max_loss": 1.0, "recipes": ["by_token"], "fp16": True}}
    trained = line.run(order(joint | settings, data, "half"), tracking, Terminal())
    manifest, report = trained.bundle.manifest, trained.report
    assert {MODEL_INT8, "model.fp16.onnx"} < set(manifest.files)
    assert (report.served_variant, manifest.int8_recipe) == ("int8", "by_token")
    assert report.variants["fp16"].size_bytes < report.variants["float32"].size_bytes
    assert report.fp16 is not None
    assert manifest.fp16_tolerance == 4 * report.fp16.largest_difference > 0
    golden.check(trained.bundle, "fp16", OnnxSession(trained.bundle.model_file("fp16")).run)


def test_data_that_cannot_be_read_leaves_no_run(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    workspace = Workspace(tmp_path / "workspace")
    with pytest.raises(DataError):
        line.run(order(LINEAR, tmp_path / "data", "none"), Tracking(workspace), Terminal())
    assert not workspace.root.exists()


def test_a_stored_model_is_measured_on_a_file_as_it_was_in_training(tracking: Tracking, texts: Path) -> None:
    trained = line.run(order(LINEAR, texts, "stored"), tracking, Terminal())
    evaluated = line.evaluate_file(trained.bundle, texts / "test.jsonl")
    assert evaluated.n == 30
    assert evaluated.metrics == trained.metrics["test"]

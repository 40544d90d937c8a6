"""Intent networks from end to end: what they start from, what they answer, and that a bundle answers the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from models.config import read as read_config
from models.errors import ConfigError
from models.manifest import Contents
from models.model import open_model
from models.networks.sentence import SentenceNetwork
from models.scope import inside, scope_log_odds
from models.session import OnnxSession
from registry import golden
from registry.evaluation import Report
from registry.predictions import Predictions
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.tiny_encoder import write_encoder
from training import intent, line
from training.config import IntentTransformerConfig, parse
from training.data.splits import IntentRows, Splits
from training.fit import Checkpoint
from training.loop import predict
from training.network import FittedNetwork, fit_intent
from training.terminal import Terminal

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = {
    "order_status": ("where is my order", "is my order where", "where is my shirt"),
    "find_shoe": ("red nike shoe", "blue adidas shoes", "green shoe size 10"),
    "oos": ("my is my is", "10 10 10"),
}
PLAIN: dict[str, Any] = {"epochs": 8, "batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2, "patience": 8}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_encoder(tmp_path_factory.mktemp("encoder")))


def config(encoder: str, scope: dict[str, Any] | None = None, **training: Any) -> IntentTransformerConfig:
    return IntentTransformerConfig.model_validate(
        {
            "task": "intent",
            "model": {"kind": "transformer", "encoder": encoder, "max_tokens": 16, "dropout": 0.0},
            "training": PLAIN | training,
            "scope": scope,
        }
    )


def splits(*names: str) -> Splits[IntentRows]:
    pairs = [(text, label) for label in names or tuple(TEXTS) for text in TEXTS[label]]
    train = IntentRows(tuple(text for text, _ in pairs * 3), tuple(label for _, label in pairs * 3), "train.jsonl")
    valid = IntentRows(tuple(text for text, _ in pairs), tuple(label for _, label in pairs), "valid.jsonl")
    return Splits(train, valid, None)


def fitted(of: IntentTransformerConfig, rows: Splits[IntentRows], directory: Path) -> tuple[FittedNetwork, Contents]:
    found = fit_intent(of, rows, Terminal(), Checkpoint(directory / "checkpoint", "f"))
    return found, found.write(directory)


def test_a_cosine_head_starts_from_class_means_and_label_names_are_texts(encoder: str, tmp_path: Path) -> None:
    # At a learning rate of nothing the network is what it started as.
    still = config(
        encoder, cosine_scale=10.0, label_names=True, epochs=1, learning_rate=1e-30, head_learning_rate=1e-30
    )
    found, _ = fitted(still, splits("find_shoe", "order_status"), tmp_path)
    network, reader = found.draft.network, found.draft.reader
    vectors = {
        label: predict(
            SentenceNetwork(network.encoder),
            [reader.encode(text) for text in (*TEXTS[label] * 3, label.replace("_", " "))],
            found.draft.contents.signature,
        )
        for label in ("find_shoe", "order_status")
    }
    means = [np.mean([one["vector"] for one in of], axis=0) for of in vectors.values()]
    text = reader.encode("red nike shoe")
    vector = predict(SentenceNetwork(network.encoder), [text], found.draft.contents.signature)[0]["vector"]
    cosines = [mean @ vector / np.linalg.norm(mean) for mean in means]
    (answer,) = found.outputs([text])
    np.testing.assert_allclose(answer["intent_logits"], 10 * np.array(cosines), atol=1e-4)


def test_the_distance_is_one_minus_the_cosine_to_the_nearest_class_mean(encoder: str, tmp_path: Path) -> None:
    of = config(encoder, {"scores": ["distance"]})
    found, contents = fitted(of, splits(), tmp_path)
    assert [spec.name for spec in contents.signature.outputs] == ["intent_logits", "class_distance"]
    reader, sentences = found.draft.reader, SentenceNetwork(found.draft.network.encoder)

    def vector(text: str) -> np.ndarray[Any, Any]:
        return np.asarray(predict(sentences, [reader.encode(text)], contents.signature)[0]["vector"])

    means = [np.mean([vector(text) for text in TEXTS[label]], axis=0) for label in ("find_shoe", "order_status")]
    units = [mean / np.linalg.norm(mean) for mean in means]
    text = "10 10 10"
    (answer,) = found.outputs([reader.encode(text)])
    assert float(answer["class_distance"]) == pytest.approx(1 - max(vector(text) @ unit for unit in units), abs=1e-5)


@pytest.mark.parametrize("training", [{}, {"cosine_scale": 10.0}])
def test_both_heads_and_the_distance_answer_alike_in_pytorch_and_in_the_bundle(
    encoder: str, tmp_path: Path, training: dict[str, Any]
) -> None:
    of = config(encoder, {"scores": ["energy", "distance"], "aim": {"oos_recall": 0.5}}, **training)
    found, contents = fitted(of, splits(), tmp_path)
    model, session = open_model(tmp_path, contents), OnnxSession(tmp_path / "model.onnx")
    encoded = model.encode("where is my order")
    batch = {name: np.stack([array, array]) for name, array in encoded.arrays.items()}
    answers = session.run(batch)
    (expected,) = found.outputs([encoded])
    for name in ("intent_logits", "class_distance"):
        np.testing.assert_allclose(answers[name][1], expected[name], atol=1e-5)
    # The cosine head's vectors are stored as they are used, not scaled to length 1 again for every text.
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    weights = {tensor.name for tensor in graph.initializer}
    heads = [node for node in graph.node if node.op_type in {"MatMul", "Gemm"} and node.input[1] in weights]
    assert len(heads) >= 2


def test_a_killed_training_with_a_decision_on_scope_ends_with_the_same_bundle(encoder: str, tmp_path: Path) -> None:
    class Stopped(Terminal):
        def progress(self, stage: str, done: int, total: int) -> None:
            del stage, total
            if done == 7:
                raise RuntimeError

    of = config(encoder, {"scores": ["distance"]}, cosine_scale=10.0, label_names=True, checkpoint_every_s=1e-9)
    whole, contents = fitted(of, splits(), tmp_path)
    with pytest.raises(RuntimeError):
        fit_intent(of, splits(), Stopped(), Checkpoint(tmp_path / "c", "f"))
    torch.manual_seed(99)
    resumed = fit_intent(of, splits(), Terminal(), Checkpoint(tmp_path / "c", "f", resume=True))
    ours, theirs = whole.draft.network.state_dict(), resumed.draft.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.draft.contents == contents


@pytest.mark.parametrize("training", [{}, {"cosine_scale": 10.0}])
def test_texts_with_several_labels_are_learned_and_none_is_out_of_scope(
    encoder: str, tmp_path: Path, training: dict[str, Any]
) -> None:
    pairs = [
        (("shoes",), "red shoes"),
        (("shoes",), "blue shoe size"),
        (("shoes", "brand"), "nike shoes"),
        (("shoes", "brand"), "red adidas shoe"),
        (("brand",), "nike adidas"),
        ((), "where is my order"),
        ((), "is my order where"),
    ]
    rows = IntentRows(
        tuple(text for _, text in pairs),
        tuple(" + ".join(sorted(labels)) or "oos" for labels, _ in pairs),
        "train.jsonl",
        label_sets=tuple(labels for labels, _ in pairs),
    )
    train = rows.take(np.repeat(np.arange(len(rows)), 6))
    found, contents = fitted(config(encoder, epochs=20, patience=20, **training), Splits(train, rows, None), tmp_path)
    assert contents.labels == ("brand", "shoes")
    assert contents.gives_several_labels
    model = open_model(tmp_path, contents)

    def labels(text: str) -> set[str]:
        encoded = model.encode(text)
        reading = model.decode(text, encoded, found.outputs([encoded])[0])
        return {label.label for label in reading.intent.labels}  # type: ignore[union-attr]

    assert [labels(text) for _, text in pairs] == [set(labels) for labels, _ in pairs]


def test_a_line_with_a_decision_on_scope_is_proved_and_keeps_what_a_promotion_needs(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.latency._BUDGET_S", 0.02)
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "valid", "test"):
        lines = [json.dumps({"text": text, "label": label}) for label, texts in TEXTS.items() for text in texts * 3]
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    overrides = [f"model.encoder={encoder}", "model.max_tokens=16", "training.epochs=2", "evaluate.n_resamples=100"]
    scope = "scope={scores: [energy, distance], aim: {oos_recall: 0.9}}"
    order = line.Order(
        parse(read_config("intent_few_shot", [*overrides, scope, "quantize.max_loss=1.0"]), "intent"), data, "q"
    )
    tracking = Tracking(Workspace(tmp_path / "workspace"))
    trained = line.run(order, tracking, Terminal())
    manifest = trained.bundle.manifest
    assert manifest.scope is not None
    report = Report.load(trained.bundle.path)
    assert {"float32", "int8"} == set(report.variants)
    assert {"scope_auroc", "label_accuracy", "ece", "oos_recall"} <= set(report.served.quality["test"].metrics)
    # The stored log-odds are those that the served file gives, and the stored labels those that they decide.
    session = OnnxSession(trained.bundle.model_file())
    golden.check(trained.bundle, trained.bundle.variant, session.run)
    model = open_model(trained.bundle.path, manifest)
    rows = intent.read_file(data / "test.jsonl", order.config)  # type: ignore[arg-type]
    stored = Predictions.load(trained.bundle.path)
    for place, text in enumerate(rows.texts[:4]):
        encoded = model.encode(text)
        outputs = {
            name: array[0]
            for name, array in session.run({name: array[None] for name, array in encoded.arrays.items()}).items()
        }
        log_odds = float(scope_log_odds(manifest.scope, outputs, inside(manifest.labels or ())))
        assert stored.answers["scope"][place] == pytest.approx(log_odds, abs=1e-3)
        reading = model.decode(text, encoded, outputs)
        assert reading.intent is not None
        assert reading.intent.in_scope is (log_odds >= manifest.scope.threshold)
    measured = line.evaluate_file(trained.bundle, data / "test.jsonl")
    assert measured.metrics == pytest.approx(report.served.quality["test"].metrics)


def test_a_linear_model_takes_no_lists_of_labels(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"red {i}", "labels": ["a", "b"][: i % 3]}) for i in range(12)]
    for split in ("train", "valid"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    of = parse(read_config("intent_linear"), "intent")
    with pytest.raises(ConfigError, match=r"need model\.kind transformer, got linear"):
        intent.fit(of, intent.read(tmp_path, of), Terminal(), Checkpoint(tmp_path / "c", "f"))  # type: ignore[arg-type]

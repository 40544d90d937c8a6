"""Tiny real bundles for everyone's tests: handmade ONNX graphs of a few kB, sealed as training seals them."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.bootstrap import interval
from models.manifest import FORMAT, Contents, FamilyName, Manifest, NgramText, Signature, SplitDigest, TensorSpec
from models.metrics import MAIN_METRIC, Ratio
from models.model import open_model
from models.ranking import RankRequest
from models.session import OnnxSession
from models.text import ngram_ids
from registry import bundle, golden
from registry.bundle import MODEL, MODEL_INT8, Bundle
from registry.evaluation import Latency, Parity, Quality, Quantization, Report, Variant
from registry.predictions import Predictions

LABELS = ("product_search", "order_status", "oos")
PHRASES = {
    "product_search": ("red nike shoes", "blue running jacket size 10"),
    "order_status": ("where is my order", "track my parcel"),
    "oos": ("what is the weather", "tell me a joke"),
}
"""What the tiny intent model was "trained" on: it answers these with their own label."""
FEATURES = ("price", "popularity")
TEXT = NgramText(char_ngrams=(2, 3), word_ngrams=(1, 1), n_buckets=512)


def tiny_bundle(directory: Path, family: str = "intent", **changes: Any) -> Bundle:
    """Seal a small model into `directory/DIGEST`.

    intent: n-grams, the labels of PHRASES. ranking: score = popularity - price / 100, missing counts 0; equal scores
    are easy to make. Changes: `weights` (intent [n_buckets, labels], ranking [features]), `int8=True` (a second
    variant), `quality` (a field of `measured`, such as `{"share_right": 0.5}`), and any field of the manifest (`name`,
    `labels`, `features`, `tolerance`, ...).
    """
    contents = _intent(changes) if family == "intent" else ranking_contents(changes)
    weights, int8, quality = changes.pop("weights", None), changes.pop("int8", False), changes.pop("quality", {})
    with bundle.draft(directory) as draft:
        graph = _intent_graph if family == "intent" else ranking_graph
        onnx.save(graph(contents, weights, int8=False), draft / MODEL)
        runs = {"float32": OnnxSession(draft / MODEL).run}
        if int8:
            onnx.save(graph(contents, weights, int8=True), draft / MODEL_INT8)
            runs["int8"] = OnnxSession(draft / MODEL_INT8).run
        model = open_model(draft, contents)
        rows = [(request, model.encode(request)) for request in requests(contents)]
        golden.write(draft, contents.signature, rows, runs)
        report, predictions = measured(contents.family, int8=int8, **quality)
        report.save(draft)
        predictions.save(draft)
        facts = {
            "format": FORMAT,
            "name": f"tiny-{family}",
            "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "config": {"task": family},
            "config_sha256": "0" * 64,
            "data": {"train": SplitDigest(file="train.jsonl", rows=6, sha256="1" * 64)},
            "code_version": "0.1.0",
            "tolerance": 1e-4,
            "files": {},
        }
        return bundle.seal(draft, Manifest(**{**contents.model_dump(), **facts, **changes}), directory)


def measured(
    family: FamilyName,
    *,
    share_right: float = 0.9,
    n_examples: int = 200,
    examples: str = "example",
    metric: str | None = None,
    latency_ms: float = 0.5,
    difference: float = 1e-6,
    n_changed: int = 0,
    int8: bool = False,
    int8_loss: float = 0.001,
    size_bytes: int = 4000,
) -> tuple[Report, Predictions]:
    """What evaluation would have found: `share_right` of the examples right, evenly spread, in two slices."""
    metric = metric or MAIN_METRIC[family]
    right_N = (np.arange(n_examples) * 37 % 100 < round(100 * share_right)).astype(np.float64)
    ratio = Ratio(right_N, np.ones(n_examples))
    early_N = np.arange(n_examples) < n_examples // 2
    ids = tuple(hashlib.sha256(f"{examples} {i}".encode()).digest()[:16] for i in range(n_examples))
    predictions = Predictions(ids, {metric: ratio}, {"part=early": early_N, "part=late": ~early_N})
    quality = Quality(n=n_examples, metrics={metric: ratio.value}, intervals={metric: interval(ratio)})
    duration = Latency(
        n_calls=100,
        total_p50_ms=latency_ms,
        total_p95_ms=2 * latency_ms,
        model_p50_ms=latency_ms / 2,
        model_p95_ms=latency_ms,
    )
    call = "list_10" if family == "ranking" else "batch_1"
    variant = Variant(quality={"valid": quality, "test": quality}, latency={call: duration}, size_bytes=size_bytes)
    parity = Parity(largest_difference=difference, n_changed_decisions=n_changed, n_examples=n_examples)
    report = Report(
        family=family,
        main_metric=metric,
        served_variant="int8" if int8 else "float32",
        variants={"float32": variant, "int8": variant} if int8 else {"float32": variant},
        parity=parity,
        quantization=Quantization(loss=int8_loss, max_loss=0.003, kept=True, parity=parity) if int8 else None,
    )
    return report, predictions


def requests(contents: Contents) -> list[str | RankRequest]:
    """What the tiny bundles are asked in their golden rows."""
    if contents.family == "intent":
        return [*(text for texts in PHRASES.values() for text in texts), "", "Größe 42 – für Straßenschuhe"]
    columns = {
        name: np.array([10.0, np.nan, 30.0, 5.0], dtype=np.float32) * (column + 1)
        for column, name in enumerate(contents.features or ())
    }
    return [
        RankRequest(ids=("p1", "p2", "p3", "p4"), text="red shoes", features=columns),
        RankRequest(ids=("p1",), features={name: column[:1] for name, column in columns.items()}),
        RankRequest(ids=("p1", "p2")),
    ]


def _intent(changes: dict[str, Any]) -> Contents:
    labels = changes.pop("labels", LABELS)
    return Contents(
        family="intent",
        labels=labels,
        text=changes.pop("text", TEXT),
        signature=Signature(
            layout="rows",
            inputs=(
                TensorSpec(name="ngram_ids", dtype="int64", shape=(-1, -1)),
                TensorSpec(name="ngram_counts", dtype="float32", shape=(-1, -1)),
            ),
            outputs=(TensorSpec(name="intent_logits", dtype="float32", shape=(-1, len(labels))),),
        ),
    )


def ranking_contents(changes: dict[str, Any]) -> Contents:
    features = changes.pop("features", FEATURES)
    return Contents(
        family="ranking",
        features=features,
        signature=Signature(
            layout="concat",
            inputs=(TensorSpec(name="features", dtype="float32", shape=(-1, len(features))),),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
        ),
    )


def _intent_graph(contents: Contents, weights: np.ndarray | None, *, int8: bool) -> onnx.ModelProto:
    labels, text = contents.labels or (), contents.text
    assert isinstance(text, NgramText)
    if weights is None:
        weights = np.zeros((text.n_buckets, len(labels)), dtype=np.float32)
        for column, label in enumerate(labels):
            for phrase in PHRASES.get(label, (label,)):
                ids, counts = ngram_ids(phrase, text)
                weights[ids, column] += counts / 7
    # Row n_buckets is what a text without n-grams is read as: it knows nothing.
    stored, nodes = _weights(np.pad(weights, ((0, 1), (0, 0))), int8=int8)
    nodes += [
        helper.make_node("Gather", ["weights", "ngram_ids"], ["picked_NLC"]),
        helper.make_node("Unsqueeze", ["ngram_counts", "last"], ["counts_NL1"]),
        helper.make_node("Mul", ["picked_NLC", "counts_NL1"], ["weighed_NLC"]),
        helper.make_node("ReduceSum", ["weighed_NLC", "middle"], ["intent_logits"], keepdims=0),
    ]
    stored += [
        numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "middle"),
    ]
    return _model(contents, nodes, stored)


def ranking_graph(contents: Contents, weights: np.ndarray | None, *, int8: bool) -> onnx.ModelProto:
    n_features = len(contents.features or ())
    if weights is None:
        weights = np.array([-0.01, 1.0] + [0.1] * n_features, dtype=np.float32)[:n_features]
    stored, nodes = _weights(np.asarray(weights, dtype=np.float32).reshape(n_features, 1), int8=int8)
    nodes += [
        helper.make_node("IsNaN", ["features"], ["missing_DF"]),
        helper.make_node("Where", ["missing_DF", "zero", "features"], ["present_DF"]),
        helper.make_node("MatMul", ["present_DF", "weights"], ["score_D1"]),
        helper.make_node("Squeeze", ["score_D1", "last"], ["score"]),
    ]
    stored += [
        numpy_helper.from_array(np.zeros(1, dtype=np.float32), "zero"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "last"),
    ]
    return _model(contents, nodes, stored)


def _weights(weights: np.ndarray, *, int8: bool) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    if not int8:
        return [numpy_helper.from_array(weights, "weights")], []
    scale = np.float32(np.abs(weights).max() / 127)
    stored = [
        numpy_helper.from_array(np.round(weights / scale).astype(np.int8), "weights_int8"),
        numpy_helper.from_array(np.array(scale), "scale"),
    ]
    return stored, [helper.make_node("DequantizeLinear", ["weights_int8", "scale"], ["weights"])]


def _model(contents: Contents, nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto]) -> onnx.ModelProto:
    types = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}

    def values(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                spec.name, types[spec.dtype], [f"{spec.name}_{i}" if n < 0 else n for i, n in enumerate(spec.shape)]
            )
            for spec in specs
        ]

    graph = helper.make_graph(
        nodes, "tiny", values(contents.signature.inputs), values(contents.signature.outputs), initializer=stored
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model

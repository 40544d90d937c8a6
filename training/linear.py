"""Linear intent models: hashed n-grams, TF-IDF and logistic regression by scikit-learn, all of it in one ONNX graph.

Shapes: N texts, L n-grams of a text, R rows of the weights (row 0: n-grams that training did not keep), C labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression

from models.batch import Arrays, Encoded
from models.errors import ConfigError, DataError, InputError
from models.manifest import Contents, NgramText, Signature, TensorSpec
from models.text import NgramEncoder
from registry.bundle import MODEL
from training.calibrate import calibrated, calibration_facts, check_scope
from training.config import IntentLinearConfig
from training.data.labels import known_labels
from training.data.splits import IntentRows, Splits
from training.fit import Checkpoint, Recorder

_OPSET = 18
_IR_VERSION = 10

_TOLERANCE = 0.02
"""Where the solver stops, times 1 / C: gradients shrink with the number of labels, and with 151 of them scikit-learn's
fixed tolerance is of the size of the very first one."""


@dataclass(frozen=True)
class FittedLinear:
    """A fitted TF-IDF and classifier, and the row of weights that each hash bucket has (int32 [n_buckets + 1])."""

    contents: Contents
    row_of_bucket: NDArray[np.int32]
    tfidf: TfidfTransformer
    classifier: LogisticRegression

    def write(self, directory: Path) -> Contents:
        """Write `model.onnx`."""
        onnx.save_model(self._graph(), str(directory / MODEL))
        return self.contents

    def outputs(self, requests: Sequence[Encoded]) -> list[Arrays]:
        """Give scikit-learn's own logits [C] of each request; of two labels, half its one logit with either sign."""
        counts_NR = _counts(requests, self.row_of_bucket, self._n_rows)
        logits = np.asarray(self.classifier.decision_function(self.tfidf.transform(counts_NR)), dtype=np.float32)
        logits_NC = logits if logits.ndim == 2 else np.stack([-logits / 2, logits / 2], axis=1)
        return [{"intent_logits": logits_C} for logits_C in logits_NC]

    def parameters(self) -> Mapping[str, float | int | str]:
        """How many n-grams have weights, and the solver's iterations."""
        facts = {"n_ngrams": self._n_rows - 1, "n_iterations": int(self.classifier.n_iter_.max())}
        return facts | calibration_facts(self.contents)

    @property
    def _n_rows(self) -> int:
        return int(self.row_of_bucket.max()) + 1

    def _graph(self) -> ModelProto:
        """TF-IDF and the classifier over `ngram_ids` [B, L] and `ngram_counts` [B, L].

        tfidf = min(count, 1) * (1 + ln(max(count, 1))) * idf, divided by its L2 norm (scikit-learn's sublinear
        TfidfTransformer); the first factor keeps padding, which has count 0, out of it whatever its id.
        """
        weights_CR = self.classifier.coef_
        bias_C = self.classifier.intercept_
        if len(weights_CR) == 1:
            # Of equal size, so that their energy does not depend on which label is the likelier one.
            weights_CR = np.concatenate([-weights_CR / 2, weights_CR / 2])
            bias_C = np.concatenate([-bias_C / 2, bias_C / 2])
        stored = {
            "row_of_bucket": self.row_of_bucket,
            # Row 0 has no weight in the norm either.
            "idf_R": np.concatenate([[0.0], self.tfidf.idf_[1:]]).astype(np.float32),
            "weights_RC": np.ascontiguousarray(weights_CR.T, dtype=np.float32),
            "bias_C": bias_C.astype(np.float32),
            "one": np.ones(1, dtype=np.float32),
            "tiny": np.full(1, 1e-12, dtype=np.float32),
            "axis_1": np.array([1], dtype=np.int64),
        }
        nodes = [
            helper.make_node("Gather", ["row_of_bucket", "ngram_ids"], ["rows_BL"]),
            helper.make_node("Gather", ["idf_R", "rows_BL"], ["idf_BL"]),
            helper.make_node("Min", ["ngram_counts", "one"], ["is_there_BL"]),
            helper.make_node("Max", ["ngram_counts", "one"], ["at_least_one_BL"]),
            helper.make_node("Log", ["at_least_one_BL"], ["log_BL"]),
            helper.make_node("Add", ["log_BL", "one"], ["sublinear_BL"]),
            helper.make_node("Mul", ["sublinear_BL", "is_there_BL"], ["tf_BL"]),
            helper.make_node("Mul", ["tf_BL", "idf_BL"], ["tfidf_BL"]),
            helper.make_node("ReduceL2", ["tfidf_BL", "axis_1"], ["norm_B1"], keepdims=1),
            # A text of unknown n-grams alone has norm 0.
            helper.make_node("Max", ["norm_B1", "tiny"], ["positive_norm_B1"]),
            helper.make_node("Div", ["tfidf_BL", "positive_norm_B1"], ["normed_BL"]),
            helper.make_node("Unsqueeze", ["normed_BL", "axis_1"], ["normed_B1L"]),
            helper.make_node("Gather", ["weights_RC", "rows_BL"], ["weights_BLC"]),
            helper.make_node("MatMul", ["normed_B1L", "weights_BLC"], ["sums_B1C"]),
            helper.make_node("Squeeze", ["sums_B1C", "axis_1"], ["sums_BC"]),
            helper.make_node("Add", ["sums_BC", "bias_C"], ["intent_logits"]),
        ]
        tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
        inputs = [
            helper.make_tensor_value_info("ngram_ids", TensorProto.INT64, ["B", "L"]),
            helper.make_tensor_value_info("ngram_counts", TensorProto.FLOAT, ["B", "L"]),
        ]
        outputs = [helper.make_tensor_value_info("intent_logits", TensorProto.FLOAT, ["B", len(bias_C)])]
        graph = helper.make_graph(nodes, "linear_intent", inputs, outputs, tensors)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="rankyard"
        )


def fit(
    config: IntentLinearConfig, splits: Splits[IntentRows], recorder: Recorder, checkpoint: Checkpoint
) -> FittedLinear:
    """Fit on the training rows; DataError for a text too long, for one label only, or where no n-gram is frequent.

    There is nothing to resume and nothing random: the fit is a convex problem, solved from zero.
    """
    checkpoint.clear()
    rows, model = splits.train, config.model
    check_scope(config.scope, splits)
    if rows.label_sets is not None:
        raise ConfigError(
            f"rows with a list of labels, as in {rows.file}, need model.kind transformer, got linear",
            field="model.kind",
        )
    labels = known_labels(rows.labels, rows.file)
    text = NgramText(char_ngrams=model.char_ngrams, word_ngrams=model.word_ngrams, n_buckets=model.n_buckets)
    encoded = _encode(rows, NgramEncoder(text))
    row_of_bucket = _kept_buckets(encoded, model.n_buckets, model.min_count)
    n_kept = int(row_of_bucket.max())
    if not n_kept:
        raise DataError(
            f"an n-gram must be in at least {model.min_count} of the training texts to count, none of "
            f"{rows.file} is; lower model.min_count",
            field="model.min_count",
        )
    recorder.say(f"{len(rows)} texts of {len(labels)} labels, {n_kept} n-grams")
    tfidf = TfidfTransformer(sublinear_tf=True)
    tfidf_NR = tfidf.fit_transform(_counts(encoded, row_of_bucket, n_kept + 1))
    classifier = LogisticRegression(
        C=config.training.regularization, max_iter=config.training.max_iterations, tol=_TOLERANCE / len(labels)
    )
    classifier.set_callbacks(_Progress(recorder, config.training.max_iterations))
    places = {label: place for place, label in enumerate(labels)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(tfidf_NR, [places[label] for label in rows.labels])
    for warning in caught:
        recorder.say(f"note: {' '.join(str(warning.message).split())}")
    fitted = FittedLinear(_contents(labels, text), row_of_bucket, tfidf, classifier)
    outputs = fitted.outputs(_encode(splits.valid, NgramEncoder(text)))
    return replace(fitted, contents=calibrated(fitted.contents, config.scope, splits.valid, outputs, recorder))


class _Progress:
    """scikit-learn's callback: says the solver's iterations, of which there are rarely as many as allowed."""

    def __init__(self, recorder: Recorder, max_iterations: int) -> None:
        self._recorder = recorder
        self._max_iterations = max_iterations
        self._done = 0

    def setup(self, *_: object, **__: object) -> None:
        """Begin: nothing is known yet."""

    def teardown(self, *_: object, **__: object) -> None:
        """End: the solver is done, however many iterations it took."""
        self._recorder.progress("solving", self._max_iterations, self._max_iterations)

    def on_fit_task_begin(self, *_: object, **__: object) -> None:
        """An iteration begins."""

    def on_fit_task_end(self, *_: object, **__: object) -> None:
        """An iteration is done."""
        self._done = min(self._done + 1, self._max_iterations - 1)
        self._recorder.progress("solving", self._done, self._max_iterations)


def _contents(labels: tuple[str, ...], text: NgramText) -> Contents:
    return Contents(
        family="intent",
        signature=Signature(
            inputs=(
                TensorSpec(name="ngram_ids", dtype="int64", shape=(-1, -1), pad=text.n_buckets),
                TensorSpec(name="ngram_counts", dtype="float32", shape=(-1, -1)),
            ),
            outputs=(TensorSpec(name="intent_logits", dtype="float32", shape=(-1, len(labels))),),
            layout="rows",
        ),
        labels=labels,
        text=text,
    )


def _encode(rows: IntentRows, encoder: NgramEncoder) -> list[Encoded]:
    encoded: list[Encoded] = []
    for number, text in enumerate(rows.texts, start=1):
        try:
            encoded.append(encoder.encode(text))
        except InputError as error:
            raise DataError(f"row {number} of {rows.file}: {error.message}") from error
    return encoded


def _kept_buckets(encoded: Sequence[Encoded], n_buckets: int, min_count: int) -> NDArray[np.int32]:
    """Give every bucket [n_buckets + 1] its row: 1, 2, ... for those in `min_count` texts, 0 for the others."""
    ids = np.concatenate([one.arrays["ngram_ids"] for one in encoded])
    n_texts = np.bincount(ids, minlength=n_buckets + 1)
    n_texts[n_buckets] = 0
    is_kept = n_texts >= min_count
    return np.where(is_kept, np.cumsum(is_kept), 0).astype(np.int32)


def _counts(encoded: Sequence[Encoded], row_of_bucket: NDArray[np.int32], n_rows: int) -> csr_matrix:
    """Counts [N, R] of the n-grams that have a row; column 0 stays empty."""
    rows = row_of_bucket[np.concatenate([one.arrays["ngram_ids"] for one in encoded])]
    counts = np.concatenate([one.arrays["ngram_counts"] for one in encoded]).astype(np.float64)
    texts = np.repeat(np.arange(len(encoded)), [one.length for one in encoded])
    is_known = (rows > 0) & (counts > 0)
    return csr_matrix((counts[is_known], (texts[is_known], rows[is_known])), shape=(len(encoded), n_rows))

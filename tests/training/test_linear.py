"""A linear model's ONNX graph answers as scikit-learn does, for any text and in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression

from models.batch import collate, split
from models.errors import DataError
from models.manifest import NgramText
from models.model import open_model
from models.session import OnnxSession
from models.text import NgramEncoder, ngram_ids
from registry.bundle import MODEL
from training.config import IntentLinearConfig, parse
from training.data.splits import IntentRows, Splits
from training.fit import Checkpoint
from training.linear import FittedLinear, fit

TEXTS = {
    "product_search": [
        "red nike shoes",
        "blue shoes size 10",
        "nike running shoes",
        "cheap red jacket",
        "größe 42 schuhe",
    ],
    "order_status": ["where is my order", "track my order", "when does my parcel come", "order status please"],
    "returns": ["return my shoes", "how do i return an order", "send it back", "i want my money back"],
}
ROWS = IntentRows(
    tuple(text for texts in TEXTS.values() for text in texts),
    tuple(label for label, texts in TEXTS.items() for _ in texts),
    "train.jsonl",
)
TWO_LABELS = ROWS.take(np.arange(9))


class Notes:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def metrics(self, *_: object) -> None:
        raise AssertionError("a linear fit has no epochs to record")

    def progress(self, _: str, done: int, total: int) -> None:
        self.steps.append((done, total))

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def configuration(**changes: Any) -> IntentLinearConfig:
    model = {"kind": "linear", "char_ngrams": [2, 4], "n_buckets": 4096, "min_count": 2, **changes.pop("model", {})}
    config = parse({"task": "intent", "model": model, **changes}, "intent")
    assert isinstance(config, IntentLinearConfig)
    return config


def fitted(rows: IntentRows, directory: Path, notes: Notes | None = None, **changes: Any) -> FittedLinear:
    splits = Splits(rows, rows, None)
    return fit(configuration(**changes), splits, notes or Notes(), Checkpoint(directory / "checkpoint", "none"))


@pytest.fixture(scope="module", params=[ROWS, TWO_LABELS], ids=["three labels", "two labels"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedLinear, Path]:
    directory = tmp_path_factory.mktemp("linear")
    model = fitted(request.param, directory)
    model.write(directory)
    return model, directory


@cache
def scikit_learn(n_rows: int) -> tuple[np.ndarray, TfidfTransformer, LogisticRegression]:
    """scikit-learn alone: dense counts of every bucket that two training texts hold, TF-IDF, logistic regression."""
    rows = ROWS.take(np.arange(n_rows))
    train_NB = counts(rows.texts)
    is_kept = (train_NB > 0).sum(axis=0) >= 2
    tfidf = TfidfTransformer(sublinear_tf=True)
    classifier = LogisticRegression(C=30.0, max_iter=200, tol=0.02 / len(set(rows.labels)))
    classifier.fit(tfidf.fit_transform(train_NB[:, is_kept]), rows.labels)
    return is_kept, tfidf, classifier


def counts(texts: Sequence[str]) -> np.ndarray:
    text_settings = NgramText(char_ngrams=(2, 4), word_ngrams=(1, 2), n_buckets=4096)
    counts_NB = np.zeros((len(texts), 4096))
    for row, text in enumerate(texts):
        ids, n_times = ngram_ids(text, text_settings)
        counts_NB[row, ids] = n_times
    return counts_NB


WORDS = st.sampled_from(["red", "nike", "order", "return", "schuhe", "größe", "zzqx", "中文", "\x01", "İ", "10"])


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(st.lists(WORDS, max_size=9).map(" ".join) | st.text(max_size=12), min_size=1, max_size=5))
def test_probabilities_are_scikit_learns_in_any_batch(models: tuple[FittedLinear, Path], batch: list[str]) -> None:
    model, directory = models
    encoder = NgramEncoder(model.contents.text)
    encoded = [encoder.encode(text) for text in batch]
    session = OnnxSession(directory / MODEL)
    outputs = split(session.run(collate(encoded, model.contents.signature)), encoded, model.contents.signature)
    is_kept, tfidf, classifier = scikit_learn(13 if len(model.contents.labels) == 3 else 9)
    expected_NC = classifier.predict_proba(tfidf.transform(counts(batch)[:, is_kept]))
    for expected_C, own, answered in zip(expected_NC, model.outputs(encoded), outputs, strict=True):
        assert answered["intent_logits"].dtype == np.float32
        assert softmax(answered["intent_logits"].astype(np.float64)) == pytest.approx(expected_C, abs=1e-5)
        assert own["intent_logits"] == pytest.approx(answered["intent_logits"], abs=1e-5)


def test_an_unknown_text_gets_the_intercepts(models: tuple[FittedLinear, Path]) -> None:
    model, directory = models
    encoder = NgramEncoder(model.contents.text)
    run = OnnxSession(directory / MODEL).run
    unknown = run({name: array[None] for name, array in encoder.encode("зъ").arrays.items()})["intent_logits"]
    nothing = run({name: array[None] for name, array in encoder.encode("").arrays.items()})["intent_logits"]
    assert np.isfinite(unknown).all()
    assert unknown.tolist() == nothing.tolist()


def test_padding_counts_nothing_whatever_its_id(models: tuple[FittedLinear, Path]) -> None:
    model, directory = models
    arrays = NgramEncoder(model.contents.text).encode("red nike shoes").arrays
    run = OnnxSession(directory / MODEL).run
    plain = run({name: array[None] for name, array in arrays.items()})
    known = int(arrays["ngram_ids"][0])
    padded = run(
        {
            "ngram_ids": np.append(arrays["ngram_ids"], [known, 0])[None],
            "ngram_counts": np.append(arrays["ngram_counts"], np.zeros(2, np.float32))[None],
        }
    )
    assert padded["intent_logits"] == pytest.approx(plain["intent_logits"], abs=1e-6)


def test_the_graph_is_valid_onnx_and_its_model_reads_training_texts_right(models: tuple[FittedLinear, Path]) -> None:
    model, directory = models
    onnx.checker.check_model(onnx.load(directory / MODEL), full_check=True)
    opened = open_model(directory, model.contents)
    session = OnnxSession(directory / MODEL)
    encoded = opened.encode("where is my order")
    outputs = split(session.run(collate([encoded], model.contents.signature)), [encoded], model.contents.signature)
    assert opened.decode("where is my order", encoded, outputs[0]).intent.label == "order_status"


def test_two_fits_are_equal(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        fitted(ROWS, tmp_path).write(tmp_path / name)
    assert (tmp_path / "one" / MODEL).read_bytes() == (tmp_path / "other" / MODEL).read_bytes()


def test_a_fit_says_how_far_it_is_and_what_it_found(tmp_path: Path) -> None:
    notes = Notes()
    model = fitted(ROWS, tmp_path, notes)
    said_first, said_last = notes.said
    assert said_first == f"13 texts of 3 labels, {model.parameters()['n_ngrams']} n-grams"
    assert said_last.startswith("confidences: temperature ")
    assert notes.steps[-1] == (200, 200)
    assert model.parameters()["n_iterations"] < 200


def test_too_few_iterations_are_said(tmp_path: Path) -> None:
    notes = Notes()
    fitted(ROWS, tmp_path, notes, training={"max_iterations": 1})
    assert any("lbfgs failed to converge" in sentence for sentence in notes.said)


@pytest.mark.parametrize(
    ("rows", "model", "message"),
    [
        (
            ROWS.take(np.arange(5)),
            {},
            "train.jsonl must have rows of at least two labels, all of them are 'product_search'",
        ),
        (
            ROWS,
            {"min_count": 14},
            "an n-gram must be in at least 14 of the training texts to count, none of train.jsonl is",
        ),
        (
            IntentRows(("a", "x" * 2001), ("l", "m"), "train.csv"),
            {},
            "row 2 of train.csv: a text must have at most 2000",
        ),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(
    tmp_path: Path, rows: IntentRows, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fitted(rows, tmp_path, model=model)

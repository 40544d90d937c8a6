"""Logits become a label, its confidence and the labels that come next."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from models.answers import Alternative
from models.batch import Encoded
from models.intent import IntentModel, decode_intent
from models.manifest import Calibration, Contents, NgramText, Signature
from models.text import NgramEncoder

LABELS = ("buy", "oos", "return", "track")


def test_confidences_are_a_tempered_softmax_in_falling_order() -> None:
    logits_C = np.array([1.0, -2.0, 3.0, 0.5], dtype=np.float32)
    intent = decode_intent(logits_C, LABELS, temperature=2.0)
    expected_C = softmax(logits_C.astype(np.float64) / 2.0)
    assert (intent.label, intent.in_scope) == ("return", True)
    assert intent.confidence == pytest.approx(expected_C[2], abs=1e-12)
    assert [other.label for other in intent.alternatives] == ["buy", "track", "oos"]
    assert [other.confidence for other in intent.alternatives] == pytest.approx(expected_C[[0, 3, 1]].tolist())


def test_equal_logits_go_to_the_first_label_and_few_alternatives_may_be_asked() -> None:
    intent = decode_intent(np.zeros(4, dtype=np.float32), LABELS, 1.0, n_alternatives=1)
    assert intent.label == "buy"
    assert intent.alternatives == (Alternative("oos", 0.25),)


def test_large_logits_do_not_overflow() -> None:
    assert decode_intent(np.array([1e30, 0.0, -1e30, 0.0]), LABELS, 1.0).confidence == 1.0


def test_the_label_oos_is_out_of_scope() -> None:
    text = NgramText(char_ngrams=(2, 3), word_ngrams=(1, 1), n_buckets=64)
    contents = Contents(
        family="intent",
        signature=Signature(inputs=(), outputs=(), layout="rows"),
        labels=LABELS,
        text=text,
        calibration=Calibration(temperature=0.5),
    )
    model = IntentModel(contents, NgramEncoder(text))
    encoded = model.encode("what is the weather")
    assert isinstance(encoded, Encoded)
    reading = model.decode("what is the weather", encoded, {"intent_logits": np.array([0.0, 1.0, 0.0, 0.0])})
    assert reading.intent is not None
    assert not reading.intent.in_scope
    assert reading.intent.confidence == pytest.approx(softmax([0.0, 2.0, 0.0, 0.0])[1])
    assert reading.entities is None

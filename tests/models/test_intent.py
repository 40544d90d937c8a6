"""Logits become a label, its confidence and the labels that come next."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp, softmax

from models.answers import Alternative
from models.batch import Encoded
from models.intent import IntentModel, answered_label, decode_in_scope, decode_intents, decode_labels
from models.manifest import Calibration, Contents, NgramText, Scope, Signature
from models.scope import inside
from models.text import NgramEncoder

LABELS = ("buy", "oos", "return", "track")
TEXT = NgramText(char_ngrams=(2, 3), word_ngrams=(1, 1), n_buckets=64)


def test_confidences_are_a_tempered_softmax_in_falling_order() -> None:
    logits_C = np.array([1.0, -2.0, 3.0, 0.5], dtype=np.float32)
    (intent,) = decode_intents(logits_C[np.newaxis], LABELS, temperature=2.0)
    expected_C = softmax(logits_C.astype(np.float64) / 2.0)
    assert (intent.label, intent.in_scope) == ("return", True)
    assert intent.confidence == pytest.approx(expected_C[2], abs=1e-12)
    assert [other.label for other in intent.alternatives] == ["buy", "track", "oos"]
    assert [other.confidence for other in intent.alternatives] == pytest.approx(expected_C[[0, 3, 1]].tolist())


def test_equal_logits_go_to_the_first_label_and_few_alternatives_may_be_asked() -> None:
    (intent,) = decode_intents(np.zeros((1, 4), dtype=np.float32), LABELS, 1.0, n_alternatives=1)
    assert intent.label == "buy"
    assert intent.alternatives == (Alternative("oos", 0.25),)


def test_large_logits_do_not_overflow() -> None:
    (intent,) = decode_intents(np.array([[1e30, 0.0, -1e30, 0.0]]), LABELS, 1.0)
    assert intent.confidence == 1.0


def test_the_label_oos_is_out_of_scope() -> None:
    contents = Contents(
        family="intent",
        signature=Signature(inputs=(), outputs=(), layout="rows"),
        labels=LABELS,
        text=TEXT,
        calibration=Calibration(temperature=0.5),
    )
    model = IntentModel(contents, NgramEncoder(TEXT))
    encoded = model.encode("what is the weather")
    assert isinstance(encoded, Encoded)
    reading = model.decode("what is the weather", encoded, {"intent_logits": np.array([0.0, 1.0, 0.0, 0.0])})
    assert reading.intent is not None
    assert not reading.intent.in_scope
    assert reading.intent.confidence == pytest.approx(softmax([0.0, 2.0, 0.0, 0.0])[1])
    assert reading.entities is None


def scope(threshold: float, *, is_calibrated: bool = True) -> Scope:
    """Log-odds are 2 energy - 1 where calibrated, the energy itself where not."""
    weight, bias = (2.0, -1.0) if is_calibrated else (1.0, 0.0)
    return Scope(weights={"energy": weight}, bias=bias, threshold=threshold, is_calibrated=is_calibrated)


LOGITS_C = np.array([1.0, 3.0, 0.0, -1.0])
INSIDE_C = softmax(LOGITS_C[[0, 2, 3]] / 2)
P_INSIDE = 1 / (1 + np.exp(-(2 * logsumexp(LOGITS_C[[0, 2, 3]]) - 1)))


def test_in_scope_a_label_has_the_chance_of_being_in_scope_times_its_own() -> None:
    (intent,) = decode_in_scope({"intent_logits": LOGITS_C[np.newaxis]}, inside(LABELS), 2.0, scope(-1.0))
    # `oos` has the largest logit, and yet the threshold alone decides.
    assert (intent.label, intent.in_scope) == ("buy", True)
    assert intent.confidence == pytest.approx(P_INSIDE * INSIDE_C[0])
    chances = {other.label: other.confidence for other in intent.alternatives}
    assert chances == pytest.approx(
        {"return": P_INSIDE * INSIDE_C[1], "track": P_INSIDE * INSIDE_C[2], "oos": 1 - P_INSIDE}
    )


def test_below_the_threshold_the_answer_is_oos_and_what_it_would_have_been_comes_next() -> None:
    (intent,) = decode_in_scope({"intent_logits": LOGITS_C[np.newaxis]}, inside(LABELS), 2.0, scope(5.0))
    assert (intent.label, intent.in_scope) == ("oos", False)
    assert intent.confidence == pytest.approx(1 - P_INSIDE)
    assert [other.label for other in intent.alternatives] == ["buy", "return", "track"]
    assert intent.confidence + sum(other.confidence for other in intent.alternatives) == pytest.approx(1.0)


def test_a_model_without_the_class_oos_can_refuse_too() -> None:
    labels = ("buy", "return", "track")
    outputs = {"intent_logits": np.array([[1.0, 0.0, -1.0]])}
    (refused,) = decode_in_scope(outputs, inside(labels), 1.0, scope(9.0, is_calibrated=False))
    assert (refused.label, refused.in_scope) == ("oos", False)
    assert refused.confidence == pytest.approx(1 - softmax([1.0, 0.0, -1.0])[0])
    (kept,) = decode_in_scope(outputs, inside(labels), 1.0, scope(0.0, is_calibrated=False))
    assert kept.confidence == pytest.approx(softmax([1.0, 0.0, -1.0])[0])
    assert [other.label for other in kept.alternatives] == ["return", "track"]


def test_a_text_may_have_several_labels_and_none_of_them_is_out_of_scope() -> None:
    def sigmoid(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))

    several = decode_labels(np.array([0.2, -3.0, 4.0, -0.1]), ("a", "b", "c", "d"), 2.0)
    assert [label.label for label in several.labels] == ["c", "a"]
    assert (several.label, several.confidence, several.in_scope) == ("c", pytest.approx(sigmoid(2)), True)
    assert [other.label for other in several.alternatives] == ["a", "d", "b"]
    none = decode_labels(np.array([-1.0, -3.0]), ("a", "b"), 1.0)
    assert (none.label, none.in_scope, none.labels) == ("oos", False, ())
    assert none.confidence == pytest.approx((1 - sigmoid(-1)) * (1 - sigmoid(-3)))
    assert answered_label(several) == "a + c"
    assert answered_label(none) == "oos"


def test_a_label_never_stands_without_what_it_implies() -> None:
    implied = {"sneakers": ("shoes", "apparel"), "shoes": ("apparel",)}
    intent = decode_labels(
        np.array([-2.0, -1.0, 1.5, -9.0]), ("apparel", "shoes", "sneakers", "toys"), 1.0, implied=implied
    )
    chance = 1 / (1 + math.exp(-1.5))
    assert {one.label: one.confidence for one in intent.labels} == pytest.approx(
        dict.fromkeys(("apparel", "shoes", "sneakers"), chance)
    )
    # Of equal chances, what stands above comes first.
    assert [one.label for one in intent.labels] == ["apparel", "shoes", "sneakers"]


@settings(deadline=None, max_examples=80)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 9), st.just(4)), elements=st.floats(-9, 9, width=16)),
    st.sampled_from([None, scope(0.5), scope(0.5, is_calibrated=False)]),
    st.sampled_from([0.5, 1.3]),
)
def test_what_is_said_of_a_text_does_not_depend_on_the_others_by_a_single_bit(logits_BC, found, temperature) -> None:
    contents = Contents(
        family="intent",
        signature=Signature(inputs=(), outputs=(), layout="rows"),
        labels=LABELS,
        text=TEXT,
        calibration=Calibration(temperature=temperature),
        scope=found,
    )
    model = IntentModel(contents, NgramEncoder(TEXT))
    texts, outputs = ["red"] * len(logits_BC), [{"intent_logits": logits_C} for logits_C in logits_BC]
    encoded = [model.encode(text) for text in texts]
    alone = [model.decode(*one) for one in zip(texts, encoded, outputs, strict=True)]
    assert model.decode_batch(texts, encoded, outputs) == alone
    assert model.decode_batch(texts * 100, encoded * 100, outputs * 100) == alone * 100


def test_that_holds_for_as_many_labels_and_texts_as_are_served() -> None:
    labels = (*(f"label {number}" for number in range(150)), "oos")
    logits_BC = np.random.default_rng(0).normal(scale=4, size=(32, 151)).astype(np.float32)
    together = decode_in_scope({"intent_logits": logits_BC}, inside(labels), 1.3, scope(25.0))
    assert together == [
        intent
        for logits_C in logits_BC
        for intent in decode_in_scope({"intent_logits": logits_C[np.newaxis]}, inside(labels), 1.3, scope(25.0))
    ]
    assert {intent.in_scope for intent in together} == {True, False}

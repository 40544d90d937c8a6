"""Intent: a text in, its label with confidence and alternatives out; the same decoding offline and in the gateway.

Shapes: B texts, C labels, I labels other than `oos`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.answers import Alternative, Intent, Reading
from models.batch import Arrays, Encoded, parts, stacked
from models.manifest import OOS_LABEL, Contents, Scope
from models.scope import Inside, inside, inside_logits, scope_log_odds
from models.text import NgramEncoder, SubwordEncoder

_N_ALTERNATIVES = 4


class IntentModel:
    """Turns a text into the input of `model.onnx`, and its output `intent_logits` [C] into an intent.

    n_ids: tokens or n-grams it can tell apart, numbered from 0.
    """

    def __init__(self, contents: Contents, encoder: SubwordEncoder | NgramEncoder) -> None:
        if not contents.labels:
            raise ValueError("an intent model must have labels")
        self._labels = contents.labels
        self._temperature = contents.calibration.temperature
        self._scope = contents.scope
        self._inside = inside(contents.labels)
        self._gives_several = contents.gives_several_labels
        self._implied = contents.implied_labels
        self._encoder = encoder
        self.n_ids = encoder.n_ids

    def encode(self, text: str) -> Encoded:
        """Tokens or n-grams of the text; InputError for a text beyond the model's longest."""
        return self._encoder.encode(text)

    def decode(self, text: str, encoded: Encoded, outputs: Arrays) -> Reading:
        """Read the intent out of one request's outputs."""
        return self.decode_batch([text], [encoded], [outputs])[0]

    def decode_batch(
        self, texts: Sequence[str], encoded: Sequence[Encoded], outputs: Sequence[Arrays]
    ) -> list[Reading]:
        """Read the intents out of several requests' outputs, each as if it were alone, in a part of the time."""
        del encoded
        return [Reading(intent) for part in parts(len(texts)) for intent in self._intents(stacked(outputs[part]))]

    def _intents(self, outputs: Arrays) -> list[Intent]:
        logits_BC = outputs["intent_logits"]
        if self._gives_several:
            return [
                decode_labels(logits_C, self._labels, self._temperature, implied=self._implied)
                for logits_C in logits_BC
            ]
        if self._scope is None:
            return decode_intents(logits_BC, self._labels, self._temperature)
        return decode_in_scope(outputs, self._inside, self._temperature, self._scope)


def decode_intents(
    logits_BC: NDArray[np.generic],
    labels: Sequence[str],
    temperature: float,
    n_alternatives: int = _N_ALTERNATIVES,
) -> list[Intent]:
    """Give each text's likeliest label, its confidence, and the next labels in falling order.

    Confidences are softmax(logits / temperature) over all labels, `oos` like any other; of equal logits the first label
    in the order of `labels` wins. In float64.
    """
    intents = []
    for likeliest in _likeliest(np.asarray(logits_BC, dtype=np.float64), temperature, n_alternatives + 1):
        (place, confidence), *others = likeliest
        intents.append(_intent(labels[place], confidence, [(labels[place], chance) for place, chance in others]))
    return intents


def decode_in_scope(
    outputs: Arrays, labels: Inside, temperature: float, scope: Scope, n_alternatives: int = _N_ALTERNATIVES
) -> list[Intent]:
    """Decide on scope, give each text's likeliest label, its confidence, and the next labels in falling order.

    q = softmax(logits / temperature) over the labels other than `oos`, and the decision is the threshold's alone. Where
    the log-odds of being in scope are calibrated, p = sigmoid(log-odds), the confidence of a label is p q, that of
    `oos` is 1 - p. Where they are not, p = 1 for a text in scope and max q for one out of scope. In float64; of equal
    logits the first label wins, and labels that are as likely as `oos` go before it.
    outputs: `intent_logits` [B, C], and `class_distance` [B] for a scope that weighs it.
    """
    found = _likeliest(inside_logits(outputs, labels), temperature, n_alternatives + 1)
    intents = []
    for likeliest, log_odds in zip(found, scope_log_odds(scope, outputs, labels).tolist(), strict=True):
        is_in_scope = log_odds >= scope.threshold
        uncalibrated = 1.0 if is_in_scope else likeliest[0][1]
        p_inside = _sigmoid(log_odds) if scope.is_calibrated else uncalibrated
        p_oos = 1 - p_inside
        others = [(labels.names[place], chance * p_inside) for place, chance in likeliest]
        if is_in_scope:
            label, confidence = others.pop(0)
            n_before = sum([chance >= p_oos for _, chance in others])
            others.insert(n_before, (OOS_LABEL, p_oos))
        else:
            label, confidence = OOS_LABEL, p_oos
        intents.append(_intent(label, confidence, others[:n_alternatives]))
    return intents


def _likeliest(logits_BC: NDArray[np.float64], temperature: float, n: int) -> Iterator[list[tuple[int, float]]]:
    """Each text's `n` likeliest places and their chances, softmax(logits / temperature); of equal ones the first."""
    # The methods `max` and `sum` are Python, which a lone text finds in no cache.
    scaled_BC = logits_BC / temperature
    scaled_BC -= np.maximum.reduce(scaled_BC, axis=1, keepdims=True)
    places = (-scaled_BC).argsort(axis=1, kind="stable")[:, :n]
    odds_BC = np.exp(scaled_BC, out=scaled_BC)
    odds_BC /= np.add.reduce(odds_BC, axis=1, keepdims=True)
    chances = odds_BC[np.arange(len(places))[:, np.newaxis], places]
    for its, their in zip(places.tolist(), chances.tolist(), strict=True):
        yield list(zip(its, their, strict=True))


def _intent(label: str, confidence: float, others: Sequence[tuple[str, float]]) -> Intent:
    """An answer, and those others that have a chance."""
    alternatives = tuple([Alternative(name, chance) for name, chance in others if chance > 0])
    return Intent(label, confidence, label != OOS_LABEL, alternatives)


def decode_labels(
    logits_C: NDArray[np.generic],
    labels: Sequence[str],
    temperature: float,
    n_alternatives: int = _N_ALTERNATIVES,
    *,
    implied: Mapping[str, Sequence[str]] | None = None,
) -> Intent:
    """Give every label that applies to a text, where several may: those whose sigmoid(logit / temperature) >= 0.5.

    A label that others imply has no lower a chance than any of them, so that none stands without what it implies. The
    likeliest one is the `label`; of equal ones that which implies the fewest, then the first in the order of `labels`.
    Where none applies the text is out of scope, and `oos` has the chance that none does, labels taken to be
    independent: the product of 1 - sigmoid.
    """
    implied = implied or {}
    own = {
        label: _sigmoid(float(logit) / temperature)
        for label, logit in zip(labels, np.asarray(logits_C, dtype=np.float64), strict=True)
    }
    chances = dict(own)
    for label, others in implied.items():
        for other in others:
            chances[other] = max(chances[other], own[label])
    ordered = [
        Alternative(label, chances[label])
        for label in sorted(labels, key=lambda one: (-chances[one], len(implied.get(one, ()))))
    ]
    applying = tuple(one for one in ordered if one.confidence >= 0.5)
    if not applying:
        none_applies = float(np.prod([1 - chance for chance in own.values()]))
        return Intent(OOS_LABEL, none_applies, in_scope=False, alternatives=tuple(ordered[:n_alternatives]))
    first = applying[0]
    next_ones = tuple(ordered[1 : n_alternatives + 1])
    return Intent(first.label, first.confidence, in_scope=True, alternatives=next_ones, labels=applying)


def joined_labels(labels: Iterable[str]) -> str:
    """Write a text's labels as one, whatever their order: what two answers are compared by; `oos` for no label."""
    return " + ".join(sorted(set(labels))) or OOS_LABEL


def answered_label(intent: Intent) -> str:
    """What an intent says in one text: its label, or all of them joined where it gives several."""
    return joined_labels(one.label for one in intent.labels) if intent.labels else intent.label


def _sigmoid(log_odds: float) -> float:
    odds = math.exp(-abs(log_odds))  # at most 1, so that nothing overflows
    return 1 / (1 + odds) if log_odds >= 0 else odds / (1 + odds)

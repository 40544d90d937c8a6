"""Intent: a text in, its label with confidence and alternatives out; the same decoding offline and in the gateway."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.answers import Alternative, Intent, Reading
from models.batch import Arrays, Encoded
from models.manifest import OOS_LABEL, Contents
from models.text import NgramEncoder, SubwordEncoder


class IntentModel:
    """Turns a text into the input of `model.onnx`, and its output `intent_logits` [C] into an intent."""

    def __init__(self, contents: Contents, encoder: SubwordEncoder | NgramEncoder) -> None:
        if not contents.labels:
            raise ValueError("an intent model must have labels")
        self._labels = contents.labels
        self._temperature = contents.calibration.temperature
        self._encoder = encoder

    def encode(self, text: str) -> Encoded:
        """Tokens or n-grams of the text; InputError for a text beyond the model's longest."""
        return self._encoder.encode(text)

    def decode(self, text: str, encoded: Encoded, outputs: Arrays) -> Reading:
        """Read the intent out of one request's outputs."""
        del text, encoded
        return Reading(intent=decode_intent(outputs["intent_logits"], self._labels, self._temperature))


def decode_intent(
    logits_C: NDArray[np.generic], labels: Sequence[str], temperature: float, n_alternatives: int = 4
) -> Intent:
    """Give the label of the largest logit, its confidence, and the next labels in falling order.

    Confidences are softmax(logits / temperature), in float64. Of equal logits the first label in the order of `labels`
    wins.
    """
    scaled_C = np.asarray(logits_C, dtype=np.float64) / temperature
    odds_C = np.exp(scaled_C - scaled_C.max())
    confidence_C = odds_C / odds_C.sum()
    best, *others = np.argsort(-scaled_C, kind="stable")[: n_alternatives + 1].tolist()
    return Intent(
        label=labels[best],
        confidence=float(confidence_C[best]),
        in_scope=labels[best] != OOS_LABEL,
        alternatives=tuple(Alternative(labels[other], float(confidence_C[other])) for other in others),
    )

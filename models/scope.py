"""Whether a text is in scope: scores of an intent model's outputs, the higher the further in, and their weighed sum.

Shapes: `...` any number of texts, C labels, I labels other than `oos`, S scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.manifest import OOS_LABEL, Scope, ScopeScore

DISTANCE_OUTPUT = "class_distance"
"""Output of networks that have it: 1 - the largest cosine of the text's vector and the mean vector of a class."""


def scope_log_odds(scope: Scope, outputs: Arrays, labels: Sequence[str]) -> NDArray[np.float64]:
    """Weighed sum [...] of the scores and the bias; a text is in scope where it is at least `scope.threshold`."""
    scores_S = scope_scores(tuple(scope.weights), outputs, labels)
    return np.asarray(scores_S @ np.array(list(scope.weights.values())) + scope.bias)


def scope_scores(names: Sequence[ScopeScore], outputs: Arrays, labels: Sequence[str]) -> NDArray[np.float64]:
    """Scores [..., S] of `intent_logits` [..., C], and of `class_distance` [...] where `distance` is among them.

    energy: log sum exp of the logits of the labels other than `oos` (Liu et al. 2020, equation 4, at temperature 1).
    oos_class: that sum minus the logit of `oos`, which is the model's own log-odds of not being `oos`.
    distance: minus the distance to the nearest class mean.
    """
    logits_C = np.asarray(outputs["intent_logits"], dtype=np.float64)
    energy = _log_sum_exp(logits_C[..., [label != OOS_LABEL for label in labels]])
    found = {"energy": energy}
    if "oos_class" in names:
        found["oos_class"] = energy - logits_C[..., list(labels).index(OOS_LABEL)]
    if "distance" in names:
        found["distance"] = -np.asarray(outputs[DISTANCE_OUTPUT], dtype=np.float64)
    return np.stack([found[name] for name in names], axis=-1)


def _log_sum_exp(logits_I: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = logits_I.max(axis=-1, keepdims=True)
    return np.asarray((largest + np.log(np.exp(logits_I - largest).sum(axis=-1, keepdims=True)))[..., 0])

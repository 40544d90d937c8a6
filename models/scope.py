"""Whether a text is in scope: scores of an intent model's outputs, the higher the further in, and their weighed sum.

Shapes: `...` any number of texts, C labels, I labels other than `oos`, S scores.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.manifest import OOS_LABEL, Scope, ScopeScore

DISTANCE_OUTPUT = "class_distance"
"""Output of networks that have it: 1 - the largest cosine of the text's vector and the mean vector of a class."""


def scope_log_odds(scope: Scope, outputs: Arrays, labels: Inside) -> NDArray[np.float64]:
    """Weighed sum [...] of the scores and the bias; a text is in scope where it is at least `scope.threshold`."""
    found = _scores(scope.weights, outputs, labels)
    return np.asarray(sum(weight * found[name] for name, weight in scope.weights.items()) + scope.bias)


def scope_scores(names: Sequence[ScopeScore], outputs: Arrays, labels: Inside) -> NDArray[np.float64]:
    """Scores [..., S] of `intent_logits` [..., C], and of `class_distance` [...] where `distance` is among them.

    energy: log sum exp of the logits of the labels other than `oos` (Liu et al. 2020, equation 4, at temperature 1).
    oos_class: that sum minus the logit of `oos`, which is the model's own log-odds of not being `oos`.
    distance: minus the distance to the nearest class mean.
    """
    found = _scores(names, outputs, labels)
    return np.stack([found[name] for name in names], axis=-1)


def _scores(names: Collection[ScopeScore], outputs: Arrays, labels: Inside) -> dict[ScopeScore, NDArray[np.float64]]:
    energy = _log_sum_exp(inside_logits(outputs, labels))
    found: dict[ScopeScore, NDArray[np.float64]] = {"energy": energy}
    if "oos_class" in names:
        found["oos_class"] = energy - np.asarray(outputs["intent_logits"], dtype=np.float64)[..., labels.oos_place]
    if "distance" in names:
        found["distance"] = -np.asarray(outputs[DISTANCE_OUTPUT], dtype=np.float64)
    return found


def inside_logits(outputs: Arrays, labels: Inside) -> NDArray[np.float64]:
    """Logits [..., I] of the labels other than `oos`, text by text: sums over them have the bits of a text alone."""
    # Not by `[..., places]`, which lays several texts out label by label.
    return np.asarray(outputs["intent_logits"], dtype=np.float64).take(labels.places, axis=-1)


class Inside(NamedTuple):
    """The labels other than `oos`: their places [I] among all, int64, their names, and those with `oos` behind.

    oos_place: that of `oos` among all, after the last where there is none.
    """

    places: NDArray[np.int64]
    oos_place: int
    names: tuple[str, ...]
    with_oos: tuple[str, ...]


def inside(labels: Sequence[str]) -> Inside:
    """Which labels are in scope; to be looked up once for the labels of a model, not for every text."""
    places = [place for place, label in enumerate(labels) if label != OOS_LABEL]
    oos_place = labels.index(OOS_LABEL) if OOS_LABEL in labels else len(labels)
    names = tuple(labels[place] for place in places)
    return Inside(np.array(places, dtype=np.int64), oos_place, names, (*names, OOS_LABEL))


def _log_sum_exp(logits_I: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = np.maximum.reduce(logits_I, axis=-1)
    return np.asarray(largest + np.log(np.add.reduce(np.exp(logits_I - largest[..., np.newaxis]), axis=-1)))

"""Confident learning: which given classes a cross-validated model contradicts (Northcutt, Jiang and Chuang 2021).

Shapes: N examples, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

N_FOLDS = 5
_SMOOTHING = 0.1
_MAX_CELLS = 10_000_000
"""Largest C x F: what one fold's model may hold (80 MB)."""
_TEMPERATURES = 2.0 ** np.arange(-1, 6.5, 0.5)


@dataclass(frozen=True, slots=True)
class Suspects:
    """Examples whose class is doubted, the most doubtful first [S]; `classes` [S] are those that the model prefers.

    given, preferred: the model's probabilities [S] of the given class and of the preferred one.
    """

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    given: NDArray[np.float64]
    preferred: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)


def doubt(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64], lowest: float) -> Suspects:
    """Find the examples whose given class is wrong, from probabilities by a model that has not seen them.

    How many: the off-diagonal count of the confident joint (Northcutt et al. 2021, equations 1 and 2). With t_j the
    mean p_i(j) over the examples i given class j, example i counts as j* = argmax of p_i(j) over the j with
    p_i(j) >= t_j. Here t_j is at least `lowest`: of a class of few examples, which no model recognises, the mean is
    near 0, and nearly every example would be above it.
    Which: those with the smallest [p_i(y_i) / t_y] / max over j other than y_i of [p_i(j) / t_j]; of as many this finds
    more of the injected errors than the off-diagonal examples themselves (experiments/data_check).
    """
    n_examples, n_classes = probabilities_NC.shape
    everyone = np.arange(n_examples)
    given_N = probabilities_NC[everyone, classes_N]
    sums_C = np.bincount(classes_N, weights=given_N, minlength=n_classes)
    threshold_C = np.maximum(sums_C / np.maximum(np.bincount(classes_N, minlength=n_classes), 1), lowest)
    is_above_NC = probabilities_NC >= threshold_C
    counted_N = np.where(is_above_NC, probabilities_NC, -1.0).argmax(axis=1)
    n_wrong = int((is_above_NC.any(axis=1) & (counted_N != classes_N)).sum())

    relative_NC = probabilities_NC / threshold_C
    own_N = relative_NC[everyone, classes_N]
    relative_NC[everyone, classes_N] = -1.0
    best_N = relative_NC.argmax(axis=1)
    others_N = relative_NC[everyone, best_N]
    rows = np.argsort(own_N / np.maximum(others_N, 1e-300), kind="stable")[:n_wrong]
    rows = rows[own_N[rows] < others_N[rows]]
    return Suspects(rows, best_N[rows], given_N[rows], probabilities_NC[rows, best_N[rows]])


def cross_validated(
    features_NF: csr_matrix, classes_N: NDArray[np.int64], folds_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Give p_i(j) [N, C] by multinomial naive Bayes, for each fold from the other folds alone.

    log p(j | x) is proportional to [log n_j + sum_f x_f log((c_jf + a) / sum_g (c_jg + a))] / T, with c_jf the sum of
    feature f over class j, a = 0.1, and one temperature T that makes the given classes most likely. Counts are less
    misled by wrong labels than a fitted boundary is, and five folds of them take a second for 15,000 texts.
    """
    n_classes = int(classes_N.max()) + 1
    features_NF = _frequent(features_NF, _MAX_CELLS // n_classes)
    all_CF, all_C = _sums(features_NF, classes_N, n_classes), np.bincount(classes_N, minlength=n_classes)
    logits_NC = np.empty((len(classes_N), n_classes))
    for fold in np.unique(folds_N):
        held = np.flatnonzero(folds_N == fold)
        held_NF, held_N = features_NF[held], classes_N[held]
        counts_CF = np.maximum(all_CF - _sums(held_NF, held_N, n_classes), 0) + _SMOOTHING
        prior_C = np.log(np.maximum(all_C - np.bincount(held_N, minlength=n_classes), _SMOOTHING))
        logits_NC[held] = held_NF @ (np.log(counts_CF) - np.log(counts_CF.sum(axis=1, keepdims=True))).T + prior_C
    return _tempered(logits_NC, classes_N)


def stratified_folds(classes_N: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Give each example [N] one of N_FOLDS folds, at random within its class."""
    generator = np.random.default_rng(seed)
    order = np.lexsort((generator.random(len(classes_N)), classes_N))
    folds_N = np.empty(len(classes_N), dtype=np.int64)
    folds_N[order] = np.arange(len(classes_N)) % N_FOLDS
    return folds_N


def numbered(classes: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Give the different classes in order, and the place of each example's class among them [N]."""
    names = sorted(set(classes))
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places[name] for name in classes], dtype=np.int64)


def _frequent(features_NF: csr_matrix, most: int) -> csr_matrix:
    n_F = np.bincount(features_NF.indices, minlength=features_NF.shape[1])
    kept = np.flatnonzero(n_F > 1)
    if len(kept) > most:
        kept = np.sort(kept[np.argsort(-n_F[kept], kind="stable")[:most]])
    return features_NF[:, kept] if len(kept) else features_NF[:, :1]


def _sums(features_NF: csr_matrix, classes_N: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    ones = np.ones(len(classes_N))
    member_CN = csr_matrix((ones, (classes_N, np.arange(len(classes_N)))), shape=(n_classes, len(classes_N)))
    sums_CF: NDArray[np.float64] = (member_CN @ features_NF).toarray()
    return sums_CF


def _tempered(logits_NC: NDArray[np.float64], classes_N: NDArray[np.int64]) -> NDArray[np.float64]:
    losses = [
        -np.log(_softmax(logits_NC, temperature)[np.arange(len(classes_N)), classes_N] + 1e-12).mean()
        for temperature in _TEMPERATURES
    ]
    return _softmax(logits_NC, float(_TEMPERATURES[int(np.argmin(losses))]))


def _softmax(logits_NC: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    scaled_NC: NDArray[np.float64] = (logits_NC - logits_NC.max(axis=1, keepdims=True)) / temperature
    np.exp(scaled_NC, out=scaled_NC)
    scaled_NC /= scaled_NC.sum(axis=1, keepdims=True)
    return scaled_NC

"""One order out of several phases' scores, by the same function in studies and in the gateway.

Shapes: P phases, D candidates that all of them scored, Q lists.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.metrics import ranking_metrics

RECIPROCAL_RANK_K = 60


def reciprocal_rank(scores_PD: Sequence[NDArray[np.floating]], k: float = RECIPROCAL_RANK_K) -> NDArray[np.float64]:
    """Fused scores [D]: sum over phases of 1 / (k + rank), ranks from 1 by falling score.

    Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
    Methods". Equal scores share the mean of their ranks, so that the order they came in says nothing.
    """
    parts_PD = np.array([1 / (k + _ranks(np.asarray(scores_D, np.float64))) for scores_D in scores_PD])
    return np.asarray(parts_PD.sum(axis=0))


def linear(scores_PD: Sequence[NDArray[np.floating]], weights: Sequence[float]) -> NDArray[np.float64]:
    """Fused scores [D]: sum over phases of weight x (score - mean) / deviation, both over these D candidates.

    A phase that scores all candidates alike adds nothing.
    """
    parts_PD = np.array([_standardised(np.asarray(scores_D, np.float64)) for scores_D in scores_PD])
    return np.asarray((parts_PD * np.asarray(weights, np.float64)[:, None]).sum(axis=0))


def fit_weights(
    scores_PQ: Sequence[Sequence[NDArray[np.floating]]], labels_Q: Sequence[NDArray[np.floating]], n_steps: int = 20
) -> tuple[float, ...]:
    """Weights [P] of `linear`, from 0 in steps of 1 / n_steps and 1 in all, with the best mean NDCG@10 of the lists.

    Of equally good ones the nearest to equal weights. labels_Q: relevance of every list's candidates.
    """
    n_phases = len(scores_PQ)

    def quality(weights: Sequence[float]) -> float:
        fused = [linear(scores_PD, weights).astype(np.float32) for scores_PD in zip(*scores_PQ, strict=True)]
        return ranking_metrics(labels_Q, fused)["ndcg@10"].value

    grid = [tuple(part / n_steps for part in parts) for parts in _compositions(n_steps, n_phases)]
    return max(
        grid, key=lambda weights: (round(quality(weights), 9), -sum((one - 1 / n_phases) ** 2 for one in weights))
    )


def _compositions(total: int, n_parts: int) -> list[tuple[int, ...]]:
    if n_parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _compositions(total - first, n_parts - 1)]


def _ranks(scores_D: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places_D, counts = np.unique(-scores_D, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts + 1
    return np.asarray((first + (counts - 1) / 2)[places_D], dtype=np.float64)


def _standardised(scores_D: NDArray[np.float64]) -> NDArray[np.float64]:
    deviation = scores_D.std()
    return (scores_D - scores_D.mean()) / deviation if deviation > 0 else np.zeros_like(scores_D)

"""How sure a metric is: percentile bootstrap intervals (Efron & Tibshirani 1993, chapters 13 and 8).

Examples are drawn with replacement, all figures are computed again on each draw, and the middle `confidence` part of
what comes out is the interval. A draw on which a metric is undefined (its denominators sum to 0) is left out; where
no draw defines it, the bounds are NaN. Everything is repeatable by `seed`.

Shapes: N examples, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from models.metrics import Ratio

N_RESAMPLES = 1000
CONFIDENCE = 0.95

_DRAWS_AT_ONCE = 2_000_000  # bounds memory: 16 MB of indices and as much of counts


def interval(
    ratio: Ratio, n_resamples: int = N_RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float]:
    """Lower and upper bound of a ratio's value."""
    return intervals({"ratio": ratio}, n_resamples, confidence, seed)["ratio"]


def intervals(
    ratios: Mapping[str, Ratio], n_resamples: int = N_RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Bounds of several ratios about the same examples, from one set of draws: the same as one by one, but faster."""
    columns = [column_N for ratio in ratios.values() for column_N in (ratio.numerator_N, ratio.denominator_N)]
    if not columns:
        return {}
    sums = _sums(np.stack(columns, axis=1), n_resamples, seed)
    return {name: _bounds(_quotient(sums[:, 2 * i], sums[:, 2 * i + 1]), confidence) for i, name in enumerate(ratios)}


def paired_difference(
    a: Ratio, b: Ratio, n_resamples: int = N_RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float, float]:
    """Difference a - b with its lower and upper bound; row i of both must be about the same example.

    Each resample draws the same examples for both, so what makes an example hard for both cancels out. ValueError where
    they differ in length.
    """
    if len(a.numerator_N) != len(b.numerator_N):
        raise ValueError(
            f"paired ratios must be about the same examples, got {len(a.numerator_N)} and {len(b.numerator_N)}"
        )
    columns = np.stack([a.numerator_N, a.denominator_N, b.numerator_N, b.denominator_N], axis=1)
    sums = _sums(columns, n_resamples, seed)
    low, high = _bounds(_quotient(sums[:, 0], sums[:, 1]) - _quotient(sums[:, 2], sums[:, 3]), confidence)
    return a.value - b.value, low, high


def interval_of(
    statistic: Callable[[NDArray[np.int64]], float],
    n_examples: int,
    n_resamples: int = N_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, float]:
    """Bounds of any statistic of example indices (macro F1, calibration error), which is called once a resample."""
    values = [statistic(row) for indices_RN in _draws(n_examples, n_resamples, seed) for row in indices_RN]
    return _bounds(np.array(values, dtype=np.float64), confidence)


def _sums(columns: NDArray[np.float64], n_resamples: int, seed: int) -> NDArray[np.float64]:
    """Sums [R, columns] over each resample: how often each example was drawn (multinomial) times what it adds."""
    n_examples = len(columns)
    sums = [np.empty((0, columns.shape[1]))]
    for indices_RN in _draws(n_examples, n_resamples, seed):
        n_rows = len(indices_RN)
        cells = indices_RN + np.arange(n_rows)[:, None] * n_examples
        counts_RN = np.bincount(cells.ravel(), minlength=n_rows * n_examples).reshape(n_rows, n_examples)
        sums.append(counts_RN.astype(np.float64) @ columns)
    return np.concatenate(sums)


def _draws(n_examples: int, n_resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of rows of N example indices, R rows in all; nothing where there are no examples."""
    generator = np.random.default_rng(seed)
    n_at_once = max(1, _DRAWS_AT_ONCE // max(n_examples, 1))
    for begin in range(0, n_resamples if n_examples else 0, n_at_once):
        yield generator.integers(n_examples, size=(min(n_at_once, n_resamples - begin), n_examples))


def _quotient(numerator_R: NDArray[np.float64], denominator_R: NDArray[np.float64]) -> NDArray[np.float64]:
    quotient_R = np.full(numerator_R.shape, math.nan)
    np.divide(numerator_R, denominator_R, out=quotient_R, where=denominator_R != 0)
    return quotient_R


def _bounds(values_R: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    defined = values_R[~np.isnan(values_R)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)

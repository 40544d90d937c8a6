"""Lists to score, the same in every process that is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Score = Callable[[NDArray[np.float32]], Any]

_MISSING = 0.05
_CELLS = 4_000_000


@cache
def made(size: int, n_features: int) -> NDArray[np.float32]:
    """Up to 64 lists [lists, size, features], a twentieth of whose values is missing."""
    generator = np.random.default_rng(size)
    n_lists = max(2, min(64, _CELLS // (size * n_features)))
    lists = generator.random((n_lists, size, n_features), dtype=np.float32)
    lists[generator.random(lists.shape) < _MISSING] = np.nan
    return lists


def median_ms(score: Score, lists: NDArray[np.float32], seconds: float) -> float:
    """Score one list after the other for so long; the median call in milliseconds."""
    times_s: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s or len(times_s) < 3:
        features_DF = lists[len(times_s) % len(lists)]
        begin_s = time.perf_counter()
        score(features_DF)
        times_s.append(time.perf_counter() - begin_s)
    return float(np.median(times_s)) * 1e3

"""When the requests of an open loop are due: seconds from its beginning, rising, without end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

POISSON, CONSTANT = "poisson", "constant"

_BLOCK = 1_024


def arrivals(kind: str, rate_per_s: float, seed: int) -> Iterator[float]:
    """Independent callers (exponential gaps of mean 1 / rate), or a metronome."""
    if kind == CONSTANT:
        return _constant(rate_per_s)
    return _poisson(rate_per_s, np.random.default_rng(seed))


def _constant(rate_per_s: float) -> Iterator[float]:
    number = 0
    while True:
        yield number / rate_per_s
        number += 1


def _poisson(rate_per_s: float, generator: np.random.Generator) -> Iterator[float]:
    now_s = 0.0
    while True:
        moments = now_s + np.cumsum(generator.exponential(1 / rate_per_s, _BLOCK))
        yield from moments.tolist()
        now_s = float(moments[-1])

"""When an answer is late, and how many late ones may be asked for a second time.

Hedged requests (Dean and Barroso, "The Tail at Scale", 2013): a batch that has waited longer than 95 of 100 of its size
did is asked for elsewhere too, and the first answer counts. A token bucket keeps that a small share of all batches, so
that a server that has become slow as a whole is not given more to do.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

from models.batch import Arrays
from registry.bundle import Bundle

_LATE = 0.95
_ENOUGH = 20
"""Answers before any is called late."""
_WINDOW = 200
"""Answers that are remembered; older ones speak of another load."""
_MOST_TOKENS = 10.0

Size = tuple[str, int]
"""A model's digest and the power of two of a batch's cells: only batches of a size take about as long."""


def size_of(bundle: Bundle, inputs: Arrays) -> Size:
    """Which batches this one is compared with."""
    return bundle.digest, sum([array.size for array in inputs.values()]).bit_length()


class Hedging:
    """Waiting times of all models, and the budget that they share.

    share: of the batches that may be asked for a second time, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._tokens = 0.0
        self._windows: dict[Size, _Window] = {}

    def late_s(self, size: Size) -> float:
        """After how many seconds a batch is late; infinite where too little is known."""
        window = self._windows.get(size)
        return math.inf if window is None else window.late_s()

    def asked(self) -> None:
        """Count a batch: each buys its share of a hedge."""
        self._tokens = min(self._tokens + self._share, _MOST_TOKENS)

    def take(self) -> bool:
        """Take a hedge out of the budget; False where it is spent."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def waited(self, size: Size, seconds: float) -> None:
        """Learn how long a batch waited for its answer, or at least so long until it was given up."""
        self._windows.setdefault(size, _Window()).add(seconds)


class _Window:
    """The last waiting times, in the order they came and sorted."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        if len(self._recent) == _WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(seconds)
        insort(self._sorted, seconds)

    def late_s(self) -> float:
        n = len(self._sorted)
        return self._sorted[math.ceil(_LATE * n) - 1] if n >= _ENOUGH else math.inf

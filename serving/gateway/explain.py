"""Why a candidate stands where it does: what its model read, and what each feature added to its score.

Legend: K answered candidates, F features.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.answers import Contributions
from models.errors import DeadlineError
from models.shap import Explainer
from serving.runtime.protocol import ServedModel

T = TypeVar("T")

_ROWS_A_TURN = 16
"""Candidates explained between two looks at the clock, about 20 ms."""


class Explainers:
    """Explainers of models, opened on first use: each keeps megabytes of its trees' paths."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._opened: dict[str, Explainer] = {}
        self._lock = threading.Lock()

    async def check(self, served: ServedModel, deadline_s: float) -> None:
        """Refuse a model whose scores cannot be explained; InputError, DeadlineError at the deadline."""
        if served.bundle.digest not in self._opened:
            await self._run(
                deadline_s,
                f"{served.ref} must be opened before the deadline to be explained, it was not",
                partial(self._open, served),
            )

    async def contributions(
        self, served: ServedModel, ids: Sequence[str], features_KF: NDArray[np.float32], deadline_s: float
    ) -> Contributions:
        """What each feature added to each candidate's score; DeadlineError at the deadline, InputError as `check`."""
        await self.check(served, deadline_s)
        explainer = self._opened[served.bundle.digest]
        names = served.bundle.manifest.features or ()
        candidates: dict[str, dict[str, float]] = {}
        for first in range(0, len(ids), _ROWS_A_TURN):
            block = slice(first, first + _ROWS_A_TURN)
            rule = f"{len(ids)} candidates must be explained before the deadline, {first} were"
            parts_KF = await self._run(deadline_s, rule, partial(explainer.contributions, features_KF[block]))
            for identity, parts_F in zip(ids[block], parts_KF.tolist(), strict=True):
                candidates[identity] = dict(zip(names, parts_F, strict=True))
        return Contributions(explainer.base, candidates)

    async def _run(self, deadline_s: float, rule: str, work: Callable[[], T]) -> T:
        """Work on a free thread; DeadlineError at the deadline, though what has begun goes on to its end."""
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError as error:
            raise DeadlineError(f"{rule}; allow more time with x-deadline-ms, or ask with a smaller top_k") from error

    def _open(self, served: ServedModel) -> None:
        with self._lock:
            if served.bundle.digest not in self._opened:
                self._opened[served.bundle.digest] = Explainer.open(served.bundle.model_file("float32"), served.ref)


def values(
    ids: Sequence[str], names: Sequence[str], arrays: Mapping[str, NDArray[np.generic]]
) -> dict[str, dict[str, float | None]]:
    """What a model read of each candidate: features [K, F] by name, None where missing; nothing of texts."""
    if not names:
        return {identity: {} for identity in ids}
    return {
        identity: {name: None if math.isnan(value) else value for name, value in zip(names, row, strict=True)}
        for identity, row in zip(ids, arrays["features"].tolist(), strict=True)
    }

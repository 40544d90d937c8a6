"""The embedded runtime: ONNX Runtime inside the gateway's own process, several workers of one thread each.

A text that comes while nothing else runs may use several cores: a second session of the same model, whose weights are
in memory once more, answers it with the same bits in less time.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.errors import DeadlineError, UnavailableError
from models.session import OnnxSession
from registry import golden
from serving.runtime import scorers
from serving.runtime.protocol import ServedModel
from serving.runtime.scorers import Run, SizedScorer
from serving.runtime.workers import Workers

Outputs = dict[str, NDArray[np.generic]]

_ALONE_THREADS = 2
_QUICK_S = 0.004
"""What takes less runs on the event loop for a lone caller: the way to a worker and back, and a core that has just
woken up, would cost a good part of the answer's time."""

_log = logging.getLogger("rankyard.gateway")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model on one thread, and as a lone text runs it."""

    run: Run
    run_alone: Run


class OnnxRuntime:
    """Runs batches on `n_workers` threads, one core each.

    Measured: two workers of one thread serve 852 texts/s where one worker of two threads serves 669, and two workers
    of two threads 0.93 of two of one. The workers share one session a model.

    n_workers: None for as many as this process may use cores. n_alone_threads: how many cores a text may use that comes
    while nothing else runs, None for two; never more than there are workers, and with 1 every model is in memory once.
    variant: `float32`, `int8` or `fp16`, None for the bundle's own choice. scorers: which ones may score trees beside
    ONNX Runtime, None for all that are installed; each list goes to the one that was fastest at its length when the
    model was loaded (`serving.runtime.scorers`). yields: whether the workers take only what all others leave of the
    cores, as long as that is something; models are loaded by a thread that shares them.
    """

    def __init__(
        self,
        n_workers: int | None = None,
        variant: str | None = None,
        scorers: Sequence[str] | None = None,
        n_alone_threads: int | None = None,
        *,
        yields: bool = False,
    ) -> None:
        self.n_workers = n_workers or len(os.sched_getaffinity(0))
        self.n_ahead = 1
        self.is_degraded = False
        self._variant = variant
        self._scorers = scorers
        self._n_alone_threads = min(n_alone_threads or _ALONE_THREADS, self.n_workers)
        self._workers = Workers(self.n_workers, "onnx", yields=yields)
        self._loader = Workers(1, "load")
        self._loaded: dict[str, _Loaded] = {}
        self._is_closed = False

    async def load(self, model: ServedModel) -> None:
        """Open the model and prove it on its golden rows; BundleError without the variant, ParityError otherwise."""
        if model.bundle.digest in self._loaded:
            return
        n_threads = {1} if model.bundle.manifest.family == "ranking" else {1, self._n_alone_threads}
        sessions = await asyncio.gather(*(self._loader.run(partial(self._prove, model), n) for n in sorted(n_threads)))
        sized = await self._loader.run(partial(self._sized, model), sessions[0])
        run = sessions[0].run if sized is None else sized.run
        run_alone = sessions[-1].run if len(sessions) > 1 else run
        self._loaded[model.bundle.digest] = _Loaded(run, run_alone)
        _trim()

    def infer(
        self, model: ServedModel, inputs: Arrays, *, timeout_s: float, lone_s: float | None = None
    ) -> asyncio.Future[Outputs]:
        """Run one batch on a free worker; DeadlineError after `timeout_s`, UnavailableError when not loaded."""
        loaded = self._loaded.get(model.bundle.digest)
        if loaded is None or self._is_closed:
            state = "closed" if self._is_closed else "without it"
            raise UnavailableError(f"{model.ref} must be loaded before it runs, the runtime is {state}; start it again")
        run = loaded.run if lone_s is None else loaded.run_alone
        if lone_s and lone_s <= _QUICK_S:
            ran: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
            ran.set_result(run(inputs))
            return ran
        answer = self._workers.run(run, inputs)
        timer = asyncio.get_running_loop().call_later(timeout_s, _expire, answer, model, timeout_s)
        answer.add_done_callback(lambda _: timer.cancel())
        return answer

    async def close(self) -> None:
        """Let running batches end, drop those not begun, release the sessions."""
        self._is_closed = True
        await asyncio.gather(self._workers.close(), self._loader.close())
        self._loaded.clear()

    def _prove(self, model: ServedModel, n_threads: int) -> OnnxSession:
        variant = self._variant or model.bundle.variant
        session = OnnxSession(model.bundle.model_file(variant), n_threads=n_threads)
        golden.check(model.bundle, variant, session.run)
        return session

    def _sized(self, model: ServedModel, session: OnnxSession) -> SizedScorer | None:
        file = model.bundle.model_file(self._variant or model.bundle.variant)
        sized = scorers.choose(model.bundle, file, session, self._scorers)
        if sized is not None:
            _log.info("%s is scored by %s", model.ref, sized)
        return sized


def _trim() -> None:
    """Give back what loading took: glibc keeps 9 MB of a MiniLM in INT8, 16 MB of a second session."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _expire(answer: asyncio.Future[Any], model: ServedModel, timeout_s: float) -> None:
    if not answer.done():
        answer.set_exception(
            DeadlineError(
                f"{model.ref} must answer within {timeout_s * 1e3:.0f} ms, it did not; allow more time or send less"
            )
        )

"""The embedded runtime: ONNX Runtime inside the gateway's own process, several workers of one thread each."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.errors import DeadlineError, UnavailableError
from models.session import OnnxSession
from registry import golden
from serving.runtime import scorers
from serving.runtime.protocol import ServedModel
from serving.runtime.scorers import Run

_log = logging.getLogger("rankyard.gateway")


class OnnxRuntime:
    """Runs batches on `n_workers` threads, one core each.

    Measured: two workers of one thread serve 852 texts/s where one worker of two threads serves 669. The workers share
    one session a model, so that its weights are in memory once.

    n_workers: None for as many as this process may use cores. variant: `float32`, `int8` or `fp16`, None for the
    bundle's own choice. scorers: which ones may score trees beside ONNX Runtime, None for all that are installed; each
    list goes to the one that was fastest at its length when the model was loaded (`serving.runtime.scorers`).
    """

    def __init__(
        self, n_workers: int | None = None, variant: str | None = None, scorers: Sequence[str] | None = None
    ) -> None:
        self.n_workers = n_workers or len(os.sched_getaffinity(0))
        self.is_degraded = False
        self._variant = variant
        self._scorers = scorers
        self._workers = ThreadPoolExecutor(self.n_workers, thread_name_prefix="onnx")
        self._runs: dict[str, Run] = {}
        self._is_closed = False

    async def load(self, model: ServedModel) -> None:
        """Open the model and prove it on its golden rows; BundleError without the variant, ParityError otherwise."""
        if model.bundle.digest not in self._runs:
            run = await asyncio.get_running_loop().run_in_executor(self._workers, self._prove, model)
            self._runs[model.bundle.digest] = run

    async def infer(self, model: ServedModel, inputs: Arrays, *, timeout_s: float) -> dict[str, NDArray[np.generic]]:
        """Run one batch on a free worker; DeadlineError after `timeout_s`, UnavailableError when not loaded."""
        run = self._runs.get(model.bundle.digest)
        if run is None or self._is_closed:
            state = "closed" if self._is_closed else "without it"
            raise UnavailableError(f"{model.ref} must be loaded before it runs, the runtime is {state}; start it again")
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._workers, run, inputs)
        except TimeoutError as error:
            raise DeadlineError(
                f"{model.ref} must answer within {timeout_s * 1e3:.0f} ms, it did not; allow more time or send less"
            ) from error

    async def close(self) -> None:
        """Let running batches end, drop those not begun, release the sessions."""
        self._is_closed = True
        await asyncio.to_thread(self._workers.shutdown, wait=True, cancel_futures=True)
        self._runs.clear()

    def _prove(self, model: ServedModel) -> Run:
        variant = self._variant or model.bundle.variant
        file = model.bundle.model_file(variant)
        session = OnnxSession(file, n_threads=1)
        golden.check(model.bundle, variant, session.run)
        sized = scorers.choose(model.bundle, file, session, self._scorers)
        if sized is None:
            return session.run
        _log.info("%s is scored by %s", model.ref, sized)
        return sized.run

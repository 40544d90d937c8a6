"""A runtime that may go away and one behind it: what the first does not answer in time, the second does.

A circuit breaker (Nygard, "Release It!", chapter 5): after some failures in a row the first runtime is asked no more,
and proved anew on the golden rows every half second until it answers as it should.
"""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.errors import DeadlineError, RankyardError, UnavailableError
from serving.runtime.protocol import Runtime, ServedModel, check_rows

_MOST_FAILURES = 3
"""In a row, before the first runtime is left alone."""
_SHARE = 0.5
"""Of the time that a batch has, what the first runtime may take; the rest is the second's."""
_TELLING_S = 0.2
"""A batch that had so long and was not answered counts against the first runtime."""
_PROBES_EVERY_S = 0.5

_log = logging.getLogger("rankyard.gateway")

Outputs = dict[str, NDArray[np.generic]]


class FallbackRuntime:
    """Asks `first`, and `second` where that fails, is late, or answers another number of rows; of one event loop.

    Both have every model. `is_degraded`: whether the first is left alone now.
    """

    def __init__(self, first: Runtime, second: Runtime) -> None:
        self.n_workers = first.n_workers
        self.is_degraded = False
        self._first = first
        self._second = second
        self._models: list[ServedModel] = []
        self._n_failures = 0
        self._probing: asyncio.Task[None] | None = None

    async def load(self, model: ServedModel) -> None:
        """Load and prove the model in both; whatever either refuses it for, but that the first is not there."""
        await self._second.load(model)
        self._models.append(model)
        if self.is_degraded:
            return
        try:
            await self._first.load(model)
        except (UnavailableError, DeadlineError) as error:
            self._leave(error)

    async def infer(self, model: ServedModel, inputs: Arrays, *, timeout_s: float) -> Outputs:
        """Run one batch; DeadlineError after `timeout_s`, whatever the second refuses it for."""
        if self.is_degraded:
            return await self._second.infer(model, inputs, timeout_s=timeout_s)
        until = time.monotonic() + timeout_s
        try:
            outputs = await self._first.infer(model, inputs, timeout_s=timeout_s * _SHARE)
            check_rows(model, outputs, len(next(iter(inputs.values()))))
        except RankyardError as error:
            # A deadline that was short says nothing about the server.
            if timeout_s >= _TELLING_S or not isinstance(error, DeadlineError):
                self._n_failures += 1
            if self._n_failures >= _MOST_FAILURES:
                self._leave(error)
        else:
            self._n_failures = 0
            return outputs
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise DeadlineError(f"{model.ref} must answer within {timeout_s * 1e3:.0f} ms, it did not; allow more time")
        return await self._second.infer(model, inputs, timeout_s=left_s)

    async def close(self) -> None:
        """Close both."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self._first.close()
        await self._second.close()

    def _leave(self, error: RankyardError) -> None:
        if self.is_degraded:
            return
        _log.error("answering in this process: %s", error.message)
        self.is_degraded = True
        self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        """Come back to the first runtime when every model is proved there again."""
        while self.is_degraded:
            await asyncio.sleep(_PROBES_EVERY_S)
            try:
                for model in self._models:
                    await self._first.load(model)
            except RankyardError:
                continue
            self.is_degraded, self._n_failures = False, 0
            _log.warning("answering over Triton again")

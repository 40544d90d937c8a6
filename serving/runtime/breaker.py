"""A circuit breaker (Nygard, "Release It!", chapter 5): a runtime that fails on a model is left alone until proved.

Closed: it is asked. Open: it is not, and the model's golden rows are tried there every half second. After they came out
right the first failure opens it again, and each time that happens the next trial waits twice as long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from models.errors import RankyardError

_MOST_FAILURES = 3
"""In a row, before the circuit opens."""
_SILENT_S = 0.2
"""Batches that were not answered in their time are failures once nothing was answered for so long."""
_TRIAL_EVERY_S = 0.5
_TRIAL_MOST_S = 8.0

_log = logging.getLogger("rankyard.gateway")


class Breaker:
    """One model's circuit; of one event loop.

    ref: for the log. prove: tries the golden rows; RankyardError where they are not right.
    """

    def __init__(self, ref: str, prove: Callable[[], Awaitable[None]]) -> None:
        self.is_open = False
        self._ref = ref
        self._prove = prove
        self._n_failures = 0
        self._n_asked = 0
        self._asked_s = 0.0
        self._silent_s = 0.0
        """How long somebody has waited for an answer since the last one."""
        self._wait_s = _TRIAL_EVERY_S
        self._trial: asyncio.Task[None] | None = None

    def asked(self) -> None:
        """Note that a batch has been sent."""
        if not self._n_asked:
            self._asked_s = time.monotonic()
        self._n_asked += 1

    def ended(self) -> None:
        """Note that nobody waits for a batch any more, before what has become of it."""
        now = time.monotonic()
        self._silent_s += now - self._asked_s
        self._asked_s = now
        self._n_asked -= 1

    def answered(self) -> None:
        """Note a right answer: all is well."""
        self._n_failures, self._silent_s, self._wait_s = 0, 0.0, _TRIAL_EVERY_S

    def missed(self) -> None:
        """Note that a batch could not wait any longer; a short deadline alone says nothing about the server."""
        if self._silent_s >= _SILENT_S:
            self.failed("it answers nothing in time")

    def failed(self, why: str) -> None:
        """Note a failure, and open after three in a row."""
        self._n_failures += 1
        if self._n_failures >= _MOST_FAILURES:
            self.open(why)

    def open(self, why: str) -> None:
        """Leave the runtime alone until it is proved."""
        if self.is_open:
            return
        _log.error("answering %s in this process: %s", self._ref, why)
        self.is_open = True
        self._trial = asyncio.get_running_loop().create_task(self._try())

    async def close(self) -> None:
        """End the trials."""
        if self._trial is not None:
            self._trial.cancel()
            await asyncio.gather(self._trial, return_exceptions=True)

    async def _try(self) -> None:
        while self.is_open:
            await asyncio.sleep(self._wait_s)
            try:
                await self._prove()
            except RankyardError:
                continue
            self.is_open, self._n_failures, self._silent_s = False, _MOST_FAILURES - 1, 0.0
            self._wait_s = min(2 * self._wait_s, _TRIAL_MOST_S)
            _log.warning("answering %s over Triton again", self._ref)

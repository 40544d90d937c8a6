"""A runtime that may go away and one behind it: what the first does not answer, or answers late, the second does.

Three ways lead to the second: the first failed; it is later than 95 of 100 batches were (a hedge, `serving.runtime.
hedging`); half of the time is gone. The first right answer counts and the other is cancelled. A model that the first
keeps failing on is not asked there until it is proved again (`serving.runtime.breaker`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.errors import DeadlineError, UnavailableError
from serving.runtime.breaker import Breaker
from serving.runtime.hedging import Hedging, Size, size_of
from serving.runtime.protocol import Runtime, ServedModel

_SHARE = 0.5
"""Of the time that a batch has, what the first runtime may take alone; the rest is the second's too."""

Outputs = dict[str, NDArray[np.generic]]
Asked = asyncio.Future[Outputs]
Reason = Literal["failed", "hedged", "late", "open"]


class FallbackRuntime:
    """Asks `first`, and `second` where that fails or is late; of one event loop.

    Both have every model. `is_degraded`: whether the first is left alone now, for any model. hedge_share: of the
    batches, how many may be asked of both before half of their time is gone. count: told why, each time
    the second is asked.
    """

    def __init__(
        self,
        first: Runtime,
        second: Runtime,
        hedge_share: float = 0.05,
        count: Callable[[Reason], None] = lambda _reason: None,
    ) -> None:
        self.n_workers, self.n_ahead = first.n_workers, first.n_ahead
        self._first = first
        self._second = second
        self._hedging = Hedging(hedge_share)
        self._count = count
        self._breakers: dict[str, Breaker] = {}

    @property
    def is_degraded(self) -> bool:
        """Whether the first is left alone for a model."""
        return any(breaker.is_open for breaker in self._breakers.values())

    async def load(self, model: ServedModel) -> None:
        """Load and prove the model in both; whatever either refuses it for, but that the first is not there."""
        await self._second.load(model)
        breaker = self._breakers.get(model.ref) or Breaker(model.ref, lambda: self._first.load(model))
        try:
            await self._first.load(model)
        except (UnavailableError, DeadlineError) as error:
            breaker.open(error.message)
        self._breakers[model.ref] = breaker

    async def infer(
        self, model: ServedModel, inputs: Arrays, *, timeout_s: float, lone_s: float | None = None
    ) -> Outputs:
        """Run one batch; DeadlineError after `timeout_s`, whatever the second refuses it for."""
        breaker = self._breakers.get(model.ref)
        if breaker is None or breaker.is_open:
            self._count("open")
            return await self._second.infer(model, inputs, timeout_s=timeout_s, lone_s=lone_s)
        size, begin_s = size_of(model.bundle, inputs), time.monotonic()
        self._hedging.asked()
        breaker.asked()
        asked = [asyncio.ensure_future(self._first.infer(model, inputs, timeout_s=timeout_s, lone_s=lone_s))]
        try:
            reason = await self._patience(asked[0], size, timeout_s)
            if reason is None:
                return asked[0].result()
            self._count(reason)
            left_s = max(0.0, begin_s + timeout_s - time.monotonic())
            asked.append(asyncio.create_task(self._ask_second(model, inputs, left_s)))
            return await _first_answer(asked)
        finally:
            self._learn(breaker, asked, size, time.monotonic() - begin_s)
            await _cancel([task for task in asked if not task.done()])
            asked.clear()  # an error's traceback leads here, and from here to the task that has the error

    async def _ask_second(self, model: ServedModel, inputs: Arrays, timeout_s: float) -> Outputs:
        """What it refuses at once is an answer too: the first may still give a better one."""
        return await self._second.infer(model, inputs, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close both."""
        for breaker in self._breakers.values():
            await breaker.close()
        await self._first.close()
        await self._second.close()

    async def _patience(self, first: Asked, size: Size, timeout_s: float) -> Reason | None:
        """Wait for the first alone; gives why the second is to be asked then, None where the first has answered."""
        most_s = timeout_s * _SHARE
        late_s = min(self._hedging.late_s(size), most_s)
        await _wait(first, late_s)
        if not first.done() and late_s < most_s:
            if self._hedging.take():
                return "hedged"
            await _wait(first, most_s - late_s)
        if not first.done():
            return "late"
        return None if first.exception() is None else "failed"

    def _learn(self, breaker: Breaker, asked: Sequence[Asked], size: Size, waited_s: float) -> None:
        """Judge the first by what it made of a batch; what both fail on is the batch's own fault."""
        first, *others = asked
        error = first.exception() if first.done() else None
        breaker.ended()
        if not first.done() or isinstance(error, DeadlineError):
            breaker.missed()
        elif error is None:
            breaker.answered()
        elif not any(other.done() and other.exception() for other in others):
            breaker.failed(str(error))
        if error is None:
            self._hedging.waited(size, waited_s)


async def _wait(task: Asked, most_s: float) -> None:
    """Wait until the task is done, without what asyncio.wait does for several: every batch passes here."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()

    def wake(_task: Asked | None = None) -> None:
        if not woken.done():
            woken.set_result(None)

    timer = loop.call_later(most_s, wake)
    task.add_done_callback(wake)
    try:
        await woken
    finally:
        timer.cancel()
        task.remove_done_callback(wake)


async def _cancel(tasks: Sequence[Asked]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _first_answer(asked: Sequence[Asked]) -> Outputs:
    """Give the first right answer; where all fail, raise what the last one asked failed on."""
    while True:
        right = next((task for task in asked if task.done() and task.exception() is None), None)
        if right is not None:
            return right.result()
        pending = {task for task in asked if not task.done()}
        if not pending:
            return asked[-1].result()
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)

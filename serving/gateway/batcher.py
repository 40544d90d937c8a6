"""Joins waiting requests of several callers into batches. Knows no HTTP: arrays in, arrays out.

One queue a model; the workers of the runtime are shared. A batch is cut only when a worker is idle, so a lone request
never waits, and none waits while a worker idles. It begins with the most urgent request of all queues, joined by those
nearest to it in length.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from models.batch import Encoded, collate, n_rows, split
from models.errors import DeadlineError, OverloadedError, RankyardError, UnavailableError
from serving.gateway.config import BatchConfig
from serving.gateway.errors import EXPIRED
from serving.gateway.telemetry import Telemetry
from serving.runtime.protocol import Runtime, ServedModel, check_rows

Outputs = dict[str, NDArray[np.generic]]

_MEMORY = 0.1
"""Weight of the newest batch in the running mean of the service time."""


class Batcher:
    """Runs single requests in batches; belongs to one event loop.

    Deadlines are seconds on the clock of `time.monotonic()`.
    """

    def __init__(self, runtime: Runtime, config: BatchConfig, max_queue_length: int, telemetry: Telemetry) -> None:
        self._runtime = runtime
        self._config = config
        self._max_queue_length = max_queue_length
        self._telemetry = telemetry
        self._queues: dict[str, _Queue] = {}
        self._n_idle = runtime.n_workers
        self._running: set[asyncio.Task[None]] = set()
        self._has_cut_scheduled = False
        self._is_draining = False
        self._is_stopped = False

    def submit(self, model: ServedModel, encoded: Encoded, deadline_s: float) -> asyncio.Future[Outputs]:
        """Queue one request; the future gives its outputs, or DeadlineError at its deadline.

        Cancelling the future takes the request out of the queue. Raises OverloadedError when the queue is full and
        UnavailableError while draining.
        """
        if self._is_draining:
            raise UnavailableError("this gateway is stopping and takes no new work; ask another one")
        queue = self._queues.get(model.ref)
        if queue is None:
            queue = self._queues[model.ref] = _Queue(model, self._config, self._telemetry)
        if len(queue) >= self._max_queue_length:
            queue.series.rejected.inc()
            raise OverloadedError(
                f"at most {self._max_queue_length} requests may wait for {model.ref}, as many do; "
                f"come back in {queue.wait_s(self._runtime.n_workers):.1f} s",
                retry_after_s=queue.wait_s(self._runtime.n_workers),
            )
        item = _Item(encoded, deadline_s)
        queue.add(item)
        self._schedule_cut()
        return item.future

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work and finish what is queued; what is left after `timeout_s` fails with UnavailableError."""
        self._is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                while self._running or any(len(queue) for queue in self._queues.values()):
                    await (asyncio.wait(self._running) if self._running else asyncio.sleep(0))
        except TimeoutError:
            self._is_stopped = True
            for queue in self._queues.values():
                queue.fail_all(UnavailableError(_STOPPED))
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def _schedule_cut(self) -> None:
        """Cut at the end of this turn of the loop: what arrives together, goes together."""
        if not self._has_cut_scheduled and self._n_idle and not self._is_stopped:
            self._has_cut_scheduled = True
            asyncio.get_running_loop().call_soon(self._cut)

    def _cut(self) -> None:
        self._has_cut_scheduled = False
        now = time.monotonic()
        while self._n_idle:
            queues = [queue for queue in self._queues.values() if queue.drop_expired(now)]
            if not queues:
                return
            queue = min(queues, key=_Queue.next_deadline_s)
            batch = queue.take(self._n_idle)
            self._n_idle -= 1
            task = asyncio.get_running_loop().create_task(self._run(queue, batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, queue: _Queue, batch: Sequence[_Item]) -> None:
        started = time.perf_counter()
        try:
            await self._infer(queue, batch)
        except (DeadlineError, UnavailableError) as error:
            _fail(batch, error)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch, _translate(error))
            else:
                await self._retry_alone(queue, batch)
        except asyncio.CancelledError:
            self._is_stopped = True
            _fail(batch, UnavailableError(_STOPPED))
        finally:
            queue.served(len(batch), time.perf_counter() - started)
            self._n_idle += 1
            self._schedule_cut()

    async def _infer(self, queue: _Queue, batch: Sequence[_Item]) -> None:
        model = queue.model
        signature = model.bundle.manifest.signature
        requests = [item.encoded for item in batch]
        inputs = collate(requests, signature)
        timeout_s = max(item.deadline_s for item in batch) - time.monotonic()
        if timeout_s <= 0:
            raise DeadlineError(EXPIRED)
        started = time.perf_counter()
        outputs = await self._runtime.infer(model, inputs, timeout_s=timeout_s)
        queue.series.model_seconds.observe(time.perf_counter() - started)
        check_rows(model, outputs, sum(n_rows(request, signature) for request in requests))
        for item, answer in zip(batch, split(outputs, requests, signature), strict=True):
            item.resolve(answer)

    async def _retry_alone(self, queue: _Queue, batch: Sequence[_Item]) -> None:
        """A batch failed: run each request by itself, so that a bad one fails alone."""
        for item in batch:
            if not item.is_live(time.monotonic()):
                continue
            try:
                await self._infer(queue, [item])
            except Exception as error:
                _fail([item], _translate(error))


_STOPPED = "this gateway stopped before the answer was there; ask another one"


class _Item:
    """A request in a queue. It lives until its future is done: answered, failed, expired or cancelled."""

    __slots__ = ("_timer", "deadline_s", "encoded", "future", "length", "n_windows")

    def __init__(self, encoded: Encoded, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.encoded = encoded
        self.length = encoded.length
        self.n_windows = encoded.n_windows
        self.deadline_s = deadline_s
        self.future: asyncio.Future[Outputs] = loop.create_future()
        self._timer = loop.call_later(max(0.0, deadline_s - time.monotonic()), self.expire)
        self.future.add_done_callback(lambda _: self._timer.cancel())

    def resolve(self, outputs: Outputs) -> None:
        if not self.future.done():
            self.future.set_result(outputs)

    def fail(self, error: RankyardError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        self.fail(DeadlineError(EXPIRED))

    def is_live(self, now_s: float) -> bool:
        """Whether somebody still waits; a request past its deadline is told so here, its timer may be late."""
        if not self.future.done() and self.deadline_s <= now_s:
            self.expire()
        return not self.future.done()


class _Queue:
    """Requests waiting for one model, in the order they came."""

    def __init__(self, model: ServedModel, config: BatchConfig, telemetry: Telemetry) -> None:
        self.model = model
        self.series = telemetry.model(model.ref, self.__len__)
        self._config = config
        self._is_padded = model.bundle.manifest.signature.layout == "rows"
        self._waiting: dict[asyncio.Future[Outputs], _Item] = {}
        self._seconds_each = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: _Item) -> None:
        self._waiting[item.future] = item
        item.future.add_done_callback(self._forget)

    def _forget(self, future: asyncio.Future[Outputs]) -> None:
        if self._waiting.pop(future, None) is not None:
            self.series.dropped.inc()

    def drop_expired(self, now_s: float) -> int:
        """Drop what nobody waits for any more; how many requests remain."""
        gone = [item for item in self._waiting.values() if not item.is_live(now_s)]
        for item in gone:
            self._forget(item.future)
        return len(self._waiting)

    def next_deadline_s(self) -> float:
        return min(item.deadline_s for item in self._waiting.values())

    def take(self, n_idle: int) -> list[_Item]:
        """Take the most urgent request and its neighbours in length; what waits is shared among the idle workers."""
        first = min(self._waiting.values(), key=lambda item: item.deadline_s)
        size = min(self._config.max_batch_size, -(-len(self._waiting) // n_idle))
        batch = list(self._joinable(first, size))
        longest = max(item.length for item in batch)
        for item in batch:
            del self._waiting[item.future]
        self.series.batch_size.observe(len(batch))
        if self._is_padded:
            n_cells = longest * sum(item.n_windows for item in batch)
            n_tokens = sum(item.n_windows * item.length for item in batch)
            self.series.padding.observe(1 - n_tokens / max(n_cells, 1))
        return batch

    def _joinable(self, first: _Item, size: int) -> Iterator[_Item]:
        """`first` and the nearest to it in length, as many as the limits of a batch allow; each window is a row."""
        yield first
        n, total, longest = first.n_windows, first.n_windows * first.length, first.length
        if size == 1:
            return
        others = (item for item in self._waiting.values() if item is not first)
        for item in heapq.nsmallest(
            size - 1, others, key=lambda item: (abs(item.length - first.length), item.deadline_s)
        ):
            n, total = n + item.n_windows, total + item.n_windows * item.length
            longest = max(longest, item.length)
            cells, most = (n * longest, None) if self._is_padded else (total, self._config.max_batch_rows)
            if n > self._config.max_batch_size or (most is not None and cells > most):
                return
            if cells - total > self._config.max_padding * cells:
                return
            yield item

    def served(self, n: int, seconds: float) -> None:
        """Learn from a batch how long a request takes."""
        weight = _MEMORY if self._seconds_each else 1.0
        self._seconds_each += weight * (seconds / n - self._seconds_each)

    def wait_s(self, n_workers: int) -> float:
        """When all that waits now will have been served, in seconds."""
        return len(self._waiting) * self._seconds_each / n_workers

    def fail_all(self, error: RankyardError) -> None:
        for item in list(self._waiting.values()):
            item.fail(error)
            self._forget(item.future)


def _fail(items: Sequence[_Item], error: RankyardError) -> None:
    for item in items:
        item.fail(error)


def _translate(error: Exception) -> RankyardError:
    if isinstance(error, RankyardError):
        return error
    return RankyardError(f"a batch could not be run: {error!r}")

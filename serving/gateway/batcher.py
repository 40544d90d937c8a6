"""Joins waiting requests of several callers into batches. Knows no HTTP: arrays in, arrays out.

The workers of the runtime are shared by all models. A batch is cut when a worker is idle, so a lone request never
waits, and none waits while a worker idles; behind busy workers a full one may stand ready. Which flow is next is
decided by start-time fair queueing (Goyal, Vin and Cheng 1996): who has used least of the workers' time, by its share;
which requests make the batch, by the flow itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from operator import attrgetter
from typing import Any, Literal, get_args

from models.batch import Encoded, collate, n_rows, split
from models.errors import DeadlineError, OverloadedError, RankyardError, UnavailableError
from models.manifest import Signature
from serving.gateway.config import BatchConfig
from serving.gateway.cost import Cost
from serving.gateway.errors import EXPIRED, FAILED
from serving.gateway.flow import Decoding, Flow, Item, Outputs, Place
from serving.gateway.telemetry import Telemetry
from serving.runtime.protocol import Runtime, ServedModel, check_rows

Priority = Literal["interactive", "bulk"]

PRIORITIES: tuple[Priority, ...] = get_args(Priority)

priority: ContextVar[Priority] = ContextVar("priority", default="interactive")
"""Of the request that is worked on: bulk work, which nobody sits and waits for, gives way to the rest."""

_SHARES: Mapping[Priority, float] = {"interactive": 1.0, "bulk": 0.1}


class Batcher:
    """Runs single requests in batches; belongs to one event loop.

    Deadlines are seconds on the clock of `time.monotonic()`.
    """

    def __init__(
        self,
        runtime: Runtime,
        config: BatchConfig,
        max_queue_length: int,
        telemetry: Telemetry,
        costs: Mapping[str, Cost] | None = None,
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._max_queue_length = max_queue_length
        self._telemetry = telemetry
        self._costs = dict(costs or {})
        self._flows: dict[tuple[str, Priority], Flow] = {}
        self._virtual_s = 0.0
        self._n_idle = runtime.n_workers
        self._was_lone = True
        """Whether nothing else ran, waited or came while the last batch was worked on, which was one request."""
        self._running: dict[asyncio.Future[Any], float] = {}
        """Batches in the runtime, or tried anew request by request, and when each is expected to be done."""
        self._ready: deque[_Batch] = deque()
        """Batches that no worker has begun with."""
        self._has_cut_scheduled = False
        self._is_draining = False
        self._is_stopped = False

    def admit(self, model: ServedModel, deadline_s: float) -> Place:
        """Keep room for a request of the current priority, before it is read: what is admitted is not refused later.

        Raises OverloadedError where too many wait, or too much work for the time that it has, and UnavailableError
        while draining.
        """
        flow = self._flow(model, priority.get())
        self._expect(flow, deadline_s)
        return Place(flow)

    def submit(
        self,
        model: ServedModel,
        encoded: Encoded,
        deadline_s: float,
        place: Place | None = None,
        decoding: Decoding | None = None,
        *,
        is_only: bool = False,
    ) -> asyncio.Future[Any]:
        """Queue one request; the future gives its outputs, or DeadlineError at its deadline.

        place: what was kept for it. Without one, or with one that another request has used, it is admitted now.
        decoding: with it the future gives the model's reading, which takes a part of the time for a batch as a whole.
        is_only: whoever asks will ask nothing else beside it, so that it may begin before this turn of the loop ends.
        Cancelling the future takes the request out of the queue.
        """
        if place is not None and place.leave():
            flow = place.flow
            if self._is_stopped:
                raise UnavailableError(_STOPPED)
        else:
            flow = self._flow(model, priority.get())
            self._expect(flow, deadline_s)
        self._wake(flow)
        if is_only and self._was_lone and self._is_quiet:
            return self._begin_alone(flow, flow.alone(encoded, deadline_s, decoding))
        item = flow.add(encoded, deadline_s, decoding)
        self._schedule_cut()
        return item.future

    def _begin_alone(self, flow: Flow, item: Item) -> asyncio.Future[Any]:
        """Begin with a request without queueing it: a lone list is scored in little more time than that takes."""
        batch, now = _Batch(flow, [item]), time.monotonic()
        running = self._start(batch, now, now)
        if running.done():
            item.is_live(time.monotonic())  # nobody has waited for its deadline: an answer behind it is late
            self._ended(batch, running)
            flow.done(item)
        else:
            item.expect_answer()
            running.add_done_callback(partial(self._ended, batch))
        return item.future

    def hasten(self, futures: Iterable[asyncio.Future[Any]]) -> None:
        """Let bulk requests that still wait be interactive ones: by now somebody sits and waits for them."""
        for future in futures:
            for (_, asked), flow in tuple(self._flows.items()):
                if asked == "bulk" and (item := flow.withdraw(future)) is not None:
                    urgent = self._flow(flow.model, "interactive")
                    self._wake(urgent)
                    urgent.enter(item)
                    self._schedule_cut()

    def _wake(self, flow: Flow) -> None:
        """A flow that had nothing to do has saved nothing up."""
        if not flow.n_waiting:
            flow.virtual_s = max(flow.virtual_s, self._virtual_s)

    def _expect(self, flow: Flow, deadline_s: float) -> None:
        """Expect that a request which came now would be answered within its deadline; raises as `admit`."""
        if self._is_draining:
            raise UnavailableError("this gateway is stopping and takes no new work; ask another one")
        if not flow.n_ahead:
            return
        now = time.monotonic()
        wait_s = self._wait_s(flow, now)
        if flow.n_ahead >= self._max_queue_length:
            rule = f"at most {self._max_queue_length} requests may wait for {flow.model.ref}, as many do"
        elif now < deadline_s < now + flow.caution * (wait_s + flow.next_s):
            rule = (
                f"a request must be answerable before its deadline in {(deadline_s - now) * 1e3:.0f} ms, about "
                f"{wait_s * 1e3:.0f} ms of work wait for {flow.model.ref}"
            )
        else:
            return
        flow.series.rejected.inc()
        raise OverloadedError(f"{rule}; come back in {wait_s:.1f} s", retry_after_s=wait_s)

    def _flow(self, model: ServedModel, asked: Priority) -> Flow:
        flow = self._flows.get((model.ref, asked))
        if flow is None:
            cost = self._costs.setdefault(model.ref, Cost())
            series = self._telemetry.model(model)
            flow = Flow(model, _SHARES[asked], cost, self._config, series)
            self._flows[model.ref, asked] = flow
            series.queue(lambda: sum(flow.n_waiting for (ref, _), flow in self._flows.items() if ref == model.ref))
        return flow

    def _wait_s(self, flow: Flow, now_s: float) -> float:
        """When a request that came now would start: what runs, and what waits before it by the flows' shares."""
        running_s = all_s = 0.0
        shares = flow.share
        for end_s in self._running.values():
            if end_s > now_s:
                running_s += end_s - now_s
        for other in self._flows.values():
            all_s += other.work_s
            if other.n_ahead and other is not flow:
                shares += other.share
        return (running_s + min(flow.work_s * shares / flow.share, all_s)) / self._runtime.n_workers

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work and finish what is queued; what is left after `timeout_s` fails with UnavailableError."""
        self._is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                while self._running or any(flow.n_ahead for flow in self._flows.values()):
                    await (asyncio.wait(self._running) if self._running else asyncio.sleep(0))
        except TimeoutError:
            self._is_stopped = True
            for flow in self._flows.values():
                flow.fail_all(UnavailableError(_STOPPED))
            running = list(self._running)
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _schedule_cut(self) -> None:
        """Cut at the end of this turn of the loop: what arrives together, goes together."""
        if not self._has_cut_scheduled and self._n_idle > -self._runtime.n_ahead:
            self._has_cut_scheduled = True
            asyncio.get_running_loop().call_soon(self._cut)

    def _cut(self) -> None:
        self._has_cut_scheduled = False
        while self._n_idle > -self._runtime.n_ahead and not self._is_stopped:
            flows = [flow for flow in self._flows.values() if flow.n_waiting]
            if not flows:
                return
            now = time.monotonic()
            flow = min(flows, key=_virtual_s)
            if self._n_idle <= 0 and flow.n_waiting < self._config.max_batch_size:
                return  # what stands ready must be full: a small batch had better grow
            idle_s = now if self._n_idle > 0 else max(now, min(self._running.values(), default=now))
            items = flow.take(max(self._n_idle, 1), now, now + flow.caution * (idle_s - now))
            if items:
                batch = _Batch(flow, items)
                self._start(batch, now, idle_s).add_done_callback(partial(self._ended, batch))
            elif self._n_idle <= 0:
                return

    def _start(self, batch: _Batch, now_s: float, idle_s: float) -> asyncio.Future[Outputs]:
        """Give a batch to the runtime; whoever does calls `_ended` when that is done."""
        flow = batch.flow
        self._virtual_s = flow.virtual_s
        flow.virtual_s += batch.expected_s / flow.share
        self._ready.append(batch)
        if self._n_idle > 0:
            self._begin(now_s)
        self._n_idle -= 1
        batch.is_lone = len(batch.items) == 1 and self._is_quiet
        running = self._infer(batch)
        self._running[running] = idle_s + batch.expected_s
        return running

    def _begin(self, now_s: float) -> None:
        """A worker begins with what has stood ready the longest."""
        batch = self._ready.popleft()
        batch.flow.series.taken(batch.items, now_s, batch.padding)
        batch.timed.begin(now_s)

    def _infer(self, batch: _Batch) -> asyncio.Future[Outputs]:
        """Give a batch to the runtime. A callback takes its outputs: a task a batch would cost a lone caller 0.1 ms."""
        try:
            inputs = collate([item.encoded for item in batch.items], batch.signature)
            timeout_s = max([item.deadline_s for item in batch.items]) - time.monotonic()
            if timeout_s <= 0:
                raise DeadlineError(EXPIRED)
            # Not the first that is alone: among several callers one often is for a moment, until the next comes.
            lone_s = batch.expected_s if batch.is_lone and self._was_lone else None
            with batch.timed:
                return asyncio.ensure_future(
                    self._runtime.infer(batch.flow.model, inputs, timeout_s=timeout_s, lone_s=lone_s)
                )
        except Exception as error:
            failed: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    @property
    def _is_quiet(self) -> bool:
        """Whether nothing runs, waits, or is being read."""
        return not self._running and not any(flow.n_ahead for flow in self._flows.values())

    def _answers(self, batch: _Batch, running: asyncio.Future[Outputs]) -> Sequence[Outputs]:
        """Each request's outputs of a batch that has ended; raises what it failed on."""
        batch.timed.end(is_right=not running.cancelled() and running.exception() is None)
        outputs = running.result()
        batch.flow.cost.learn(batch.n_cells, batch.n_padding, batch.timed.seconds)
        check_rows(batch.flow.model, outputs, batch.n_rows)
        return split(outputs, [item.encoded for item in batch.items], batch.signature)

    def _ended(self, batch: _Batch, running: asyncio.Future[Outputs]) -> None:
        """Free the worker, then answer."""
        expected_s = self._running.pop(running)
        self._was_lone = batch.is_lone and self._is_quiet
        answers: Sequence[Outputs] = ()
        try:
            answers = self._answers(batch, running)
        except (DeadlineError, UnavailableError) as error:
            _fail(batch.items, error)
        except asyncio.CancelledError:
            self._is_stopped = True
            _fail(batch.items, UnavailableError(_STOPPED))
        except Exception as error:
            if len(batch.items) > 1:
                retrying = asyncio.get_running_loop().create_task(self._retry_alone(batch))
                self._running[retrying] = expected_s
                retrying.add_done_callback(self._retried)
                return
            _fail(batch.items, _translate(error))
        self._free()
        _answer(batch.flow, [found for found in zip(batch.items, answers, strict=False) if not found[0].future.done()])

    def _retried(self, retrying: asyncio.Future[Any]) -> None:
        del self._running[retrying]
        self._free()

    def _free(self) -> None:
        """Give an idle worker its next batch before anybody is told: reading the answers would keep it waiting."""
        self._n_idle += 1
        if self._ready:
            self._begin(time.monotonic())
        self._cut()

    async def _retry_alone(self, batch: _Batch) -> None:
        """A batch failed: run each request by itself, so that a bad one fails alone."""
        for item in batch.items:
            if not item.is_live(time.monotonic()):
                continue
            alone = _Batch(batch.flow, [item])
            running = self._infer(alone)
            try:
                await asyncio.wait((running,))
                (answer,) = self._answers(alone, running)
                _answer(batch.flow, [(item, answer)])
            except asyncio.CancelledError:
                running.cancel()
                _fail(batch.items, UnavailableError(_STOPPED))
                raise
            except Exception as error:
                _fail([item], _translate(error))


class _Batch:
    """Requests that go together: their rows, cells, cells of padding, and the measure of their time in the runtime."""

    __slots__ = ("expected_s", "flow", "is_lone", "items", "n_cells", "n_padding", "n_rows", "signature", "timed")

    def __init__(self, flow: Flow, items: Sequence[Item]) -> None:
        self.flow = flow
        self.items = items
        self.signature: Signature = flow.model.bundle.manifest.signature
        self.n_cells, self.n_padding = flow.size(items)
        self.expected_s = flow.cost.seconds(self.n_cells, self.n_padding)
        self.is_lone = False
        self.n_rows = sum([n_rows(item.encoded, self.signature) for item in items])
        self.timed = flow.series.infer(items, self.n_rows)

    @property
    def padding(self) -> float | None:
        """Share of its cells that is padding, None where there can be none."""
        return self.n_padding / max(self.n_cells + self.n_padding, 1) if self.flow.is_padded else None


_STOPPED = "this gateway stopped before the answer was there; ask another one"

_log = logging.getLogger("rankyard.gateway")

_virtual_s = attrgetter("virtual_s")


def give_up(asked: list[asyncio.Future[Any]]) -> None:
    """Cancel what nobody waits for any more, and forget it.

    An error's traceback leads to who waited: with its future still there, only the garbage collector would end either.
    """
    while asked:
        asked.pop().cancel()


def _fail(items: Sequence[Item], error: RankyardError) -> None:
    error = error.with_traceback(None)  # it leads to the batch, which has the futures: see `give_up`
    for item in items:
        item.fail(error)


def _answer(flow: Flow, found: Sequence[tuple[Item, Outputs]]) -> None:
    """Give requests their outputs, or what is read out of them: together, and each alone where that fails."""
    for item, outputs in found:
        if item.decoding is None:
            item.resolve(outputs)
    asked = [(item, item.decoding, outputs) for item, outputs in found if item.decoding is not None]
    if not asked:
        return
    items = [item for item, _, _ in asked]
    begin_s = time.monotonic()
    try:
        readings = asked[0][1].decode(
            [decoding.request for _, decoding, _ in asked],
            [item.encoded for item in items],
            [outputs for _, _, outputs in asked],
        )
    except Exception as error:
        if len(asked) > 1:
            for item, _, outputs in asked:
                _answer(flow, [(item, outputs)])
        else:
            _fail(items, _translate(error))
        return
    flow.series.decoded(items, begin_s)
    for item, reading in zip(items, readings, strict=True):
        item.resolve(reading)


def _translate(error: Exception) -> RankyardError:
    if isinstance(error, RankyardError):
        return error
    _log.error("a batch failed", exc_info=error)
    return RankyardError(FAILED)

"""Requests that wait for one model with one priority, and which of them make a good batch.

A request should start at once, and the later the more it costs: a short one passes a long one that came a moment
before it, but not one that has waited for `_STRETCH` times its own cost. Where its deadline leaves less than `_URGENT`
times its cost, it goes before those that have more.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.batch import Encoded
from models.errors import DeadlineError, RankyardError
from serving.gateway import tracing
from serving.gateway.config import BatchConfig
from serving.gateway.cost import Cost
from serving.gateway.errors import EXPIRED
from serving.gateway.series import ModelSeries
from serving.runtime.protocol import ServedModel

Outputs = dict[str, NDArray[np.generic]]

_STRETCH = 2.0
_URGENT = 16.0
_PATIENCE = 1.5
_ROUNDED = 1 + 1e-9
_COSTLY = 0.5
"""Padding that costs less than this part of a token is not worth passing over a request that came before."""
_HOPE = 1.5
_DOUBT = 6.0
_DOUBTS_MORE, _DOUBTS_LESS = 1.1, 0.999
"""A late answer makes the flow more cautious, one in time less: at the bounds between, one in a hundred is late."""
_USUAL_RATE = 0.1
_REACH = 4
"""A batch is chosen among this many times as many requests as it may hold."""

_start_s = attrgetter("start_s")


class Decoding(NamedTuple):
    """What was asked, and how a model's outputs for several requests are read: each as if it were alone."""

    request: Any
    decode: Callable[[Sequence[Any], Sequence[Encoded], Sequence[Outputs]], Sequence[Any]]


class Item:
    """A request that waits. It lives until its future is done: answered, failed, expired or cancelled.

    decoding: how its outputs are read, None for one that wants them as they are. start_s: when it should begin.
    share_s: what it adds to a batch, with its part of a full batch's fixed cost.
    """

    __slots__ = (
        *("_timer", "deadline_s", "encoded", "flow", "future", "is_taken", "length", "n_cells", "n_windows"),
        *("decoding", "is_late", "queued_s", "share_s", "span", "start_s"),
    )

    flow: Flow
    """Where it waits."""

    def __init__(
        self, encoded: Encoded, deadline_s: float, cost: Cost, max_batch_size: int, decoding: Decoding | None
    ) -> None:
        self.encoded = encoded
        self.decoding = decoding
        self.length = encoded.length
        self.n_windows = encoded.n_windows
        self.n_cells = self.n_windows * self.length
        self.deadline_s = deadline_s
        self.queued_s = time.monotonic()
        self.span = tracing.current.get()
        alone_s = cost.seconds(self.n_cells)
        self.share_s = alone_s - cost.fixed_s * (1 - 1 / max_batch_size)
        self.start_s = min(self.queued_s + _STRETCH * alone_s, deadline_s - _URGENT * alone_s)
        self.is_taken = False
        self.is_late = False
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def expect_answer(self) -> None:
        """Wait for an answer until the deadline."""
        self._timer = self.future.get_loop().call_later(max(0.0, self.deadline_s - self.queued_s), self.expire)
        self.future.add_done_callback(self._done)

    def _done(self, _future: asyncio.Future[Outputs]) -> None:
        self._timer.cancel()
        self.flow.done(self)

    def resolve(self, answer: Any) -> None:
        """Answer, if anybody still waits."""
        if not self.future.done():
            self.future.set_result(answer)

    def fail(self, error: RankyardError) -> None:
        """Fail, if anybody still waits."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        """Tell that the deadline has passed."""
        self.is_late = True
        self.fail(DeadlineError(EXPIRED))

    def is_live(self, now_s: float) -> bool:
        """Whether somebody still waits; a request past its deadline is told so here, its timer may be late."""
        if not self.future.done() and self.deadline_s <= now_s:
            self.expire()
        return not self.future.done()


class Place:
    """Room in a flow for a request that was admitted and does not wait yet; kept until it waits, or leaves."""

    __slots__ = ("_is_kept", "flow")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._is_kept = True
        flow.n_admitted += 1

    def leave(self) -> bool:
        """Give the room back; whether it was still kept."""
        was_kept, self._is_kept = self._is_kept, False
        self.flow.n_admitted -= was_kept
        return was_kept

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.leave()


class Flow:
    """The requests for one model with one priority, the one that should start first in front.

    share: of the workers' time, beside the shares of all other flows that have something to do. virtual_s: what it has
    used of that time, divided by its share.
    """

    def __init__(self, model: ServedModel, share: float, cost: Cost, config: BatchConfig, series: ModelSeries) -> None:
        self.model = model
        self.share = share
        self.cost = cost
        self.series = series
        self.virtual_s = 0.0
        self.backlog_s = 0.0
        """What it will cost to serve all that waits."""
        self.caution = _HOPE
        """How much longer than expected work may take, as far as late answers tell: a late answer is of no use."""
        self.is_padded = model.bundle.manifest.signature.layout == "rows"
        self._config = config
        self._items: list[Item] = []
        self.n_waiting = 0
        self.n_admitted = 0
        """Requests that will wait here, and are being read."""
        self._usual_s = 0.0
        """What a request adds to a batch, of those that came lately."""

    @property
    def n_ahead(self) -> int:
        """Requests that a new one finds before it."""
        return self.n_waiting + self.n_admitted

    @property
    def work_s(self) -> float:
        """What it will cost to serve them."""
        return self.backlog_s + self.n_admitted * self._usual_s

    def add(self, encoded: Encoded, deadline_s: float, decoding: Decoding | None = None) -> Item:
        """Let a request wait."""
        item = self._item(encoded, deadline_s, decoding)
        self.enter(item)
        item.expect_answer()
        return item

    def alone(self, encoded: Encoded, deadline_s: float, decoding: Decoding | None = None) -> Item:
        """A request that need not wait: taken as it comes, and nobody expects its answer yet."""
        item = self._item(encoded, deadline_s, decoding)
        item.flow, item.is_taken = self, True
        return item

    def _item(self, encoded: Encoded, deadline_s: float, decoding: Decoding | None) -> Item:
        item = Item(encoded, deadline_s, self.cost, self._config.max_batch_size, decoding)
        self._usual_s += (_USUAL_RATE if self._usual_s else 1.0) * (item.share_s - self._usual_s)
        return item

    def done(self, item: Item) -> None:
        """Learn from a request whether others should be taken; one with hardly any time at all tells nothing."""
        if item.is_late and item.deadline_s - item.queued_s > _URGENT * item.share_s:
            self.caution = min(_DOUBT, self.caution * _DOUBTS_MORE)
        elif self.caution > _HOPE:
            self.caution = max(_HOPE, self.caution * _DOUBTS_LESS)
        self._leave(item)

    def enter(self, item: Item) -> None:
        """Let a request wait here."""
        item.flow = self
        insort(self._items, item, key=_start_s)
        self.n_waiting += 1
        self.backlog_s += item.share_s

    def withdraw(self, future: asyncio.Future[Any]) -> Item | None:
        """Give the request of `future`, where it waits here, and let it wait here no longer."""
        item = next((item for item in self._items if item.future is future and not item.is_taken), None)
        if item is not None:
            self._items.remove(item)
            self._discount(item)
        return item

    def _leave(self, item: Item) -> None:
        """A request is done; it gives up its place where nobody has taken it."""
        if not item.is_taken:
            self.series.dropped(item)
            self._take(item)
            if len(self._items) > 2 * self.n_waiting:
                self._forget_taken()

    def _take(self, item: Item) -> None:
        item.is_taken = True
        self._discount(item)

    def _discount(self, item: Item) -> None:
        self.n_waiting -= 1
        self.backlog_s = self.backlog_s - item.share_s if self.n_waiting else 0.0

    @property
    def next_s(self) -> float:
        """What a batch will take that has a request which came now, and as many as may be of those before it."""
        return self.work_s * min(1.0, self._config.max_batch_size / max(self.n_ahead, 1))

    def take(self, n_idle: int, now_s: float, begins_s: float) -> list[Item]:
        """Take the request that should start first, and those that are best computed with it; [] where none is left.

        What waits is shared among the idle workers. begins_s: when a worker will begin; what must be answered before is
        left for one that is idle earlier.
        """
        live = (item for item in self._live(now_s) if item.deadline_s > begins_s)
        reach = list(islice(live, _REACH * self._config.max_batch_size))
        size = min(self._config.max_batch_size, -(-self.n_waiting // n_idle))
        batch = list(self._joined(reach, size, begins_s)) if reach else []
        for item in batch:
            self._take(item)
        self._forget_taken()
        return batch

    def _forget_taken(self) -> None:
        self._items = [item for item in self._items if not item.is_taken]

    def _live(self, now_s: float) -> Iterator[Item]:
        for item in self._items:
            if not item.is_taken:
                if item.is_live(now_s):
                    yield item
                else:
                    self._leave(item)

    def size(self, batch: Sequence[Item]) -> tuple[int, int]:
        """Cells of a batch, and cells of its padding."""
        n_cells = sum([item.n_cells for item in batch])
        if not self.is_padded:
            return n_cells, 0
        return n_cells, max([item.length for item in batch]) * sum([item.n_windows for item in batch]) - n_cells

    def _joined(self, reach: list[Item], size: int, begins_s: float) -> Iterator[Item]:
        """The first of `reach` and the nearest to it in length, as long as each is better off together than apart.

        Together must cost less than apart, must be done before every deadline that could be kept, and must not make the
        shortest wait for much longer than a full batch of its like. Each window of a text is a row.
        """
        first = reach[0]
        yield first
        if size == 1:
            return
        config, cost = self._config, self.cost
        n, n_cells, longest, until_s = first.n_windows, first.n_cells, first.length, first.deadline_s
        together_s = shortest_s = cost.seconds(n_cells)
        others: Iterable[Item] = islice(reach, 1, None)
        if self.is_padded and cost.padding_s > _COSTLY * cost.cell_s:
            others = sorted(others, key=lambda item: abs(item.length - first.length))
        for item in others:
            n_rows, cells, length = n + item.n_windows, n_cells + item.n_cells, max(longest, item.length)
            padding = n_rows * length - cells if self.is_padded else 0
            if n_rows > config.max_batch_size or padding > config.max_padding * (cells + padding):
                continue
            if not self.is_padded and cells > config.max_batch_rows:
                continue
            seconds, alone_s = cost.seconds(cells, padding), cost.seconds(item.n_cells)
            shortest, until = min(shortest_s, alone_s), min(until_s, item.deadline_s)
            # Where a batch has no fixed cost, together and apart are the same but for rounding.
            if seconds > _ROUNDED * (together_s + alone_s) or seconds > _PATIENCE * config.max_batch_size * shortest:
                continue
            if begins_s + seconds > until and begins_s + together_s <= until:
                continue
            n, n_cells, longest, together_s, shortest_s, until_s = n_rows, cells, length, seconds, shortest, until
            yield item
            size -= 1
            if size == 1:
                return

    def fail_all(self, error: RankyardError) -> None:
        """Fail everything that waits."""
        for item in self._items:
            item.fail(error)
            if not item.is_taken:
                self._leave(item)
        self._items.clear()

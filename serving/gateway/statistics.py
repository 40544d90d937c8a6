"""How often a model was asked, and what its answers took, as Triton's clients read it: totals since it is served.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from msgspec import Struct, field

from models.errors import InputError

_NS, _MS = 1e9, 1e3


class Duration(Struct):
    """How often, and how long in all (nanoseconds)."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count once more, or `count` times that took `seconds` together."""
        self.count += count
        self.ns += round(seconds * _NS)


class InferenceStatistics(Struct):
    """Of requests: success, fail, compute_input (reading, tokenizing), compute_output (writing).

    queue, compute_infer: of rows of texts and of lists of candidates, each of which is queued by itself; all of a batch
    are in it as long as it takes, and texts that are read together in compute_output too.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)


class BatchStatistics(Struct):
    """Of batches of one size; what joins and divides them is part of neither."""

    batch_size: int
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


class ModelStatistics:
    """One model's totals. n_rows: texts, or candidates, that it answered; n_batches: how often it was run for them."""

    def __init__(self) -> None:
        self.inference = InferenceStatistics()
        self.batches: dict[int, BatchStatistics] = {}
        self.n_rows = 0
        self.n_batches = 0
        self.last_ms = 0
        """When it was last asked, in milliseconds since 1970."""

    def ran(self, n_requests: int, n_rows: int, seconds: float) -> None:
        """Count a batch that was run."""
        self.inference.compute_infer.add(seconds * n_requests, n_requests)
        of_size = self.batches.get(n_rows)
        if of_size is None:
            of_size = self.batches[n_rows] = BatchStatistics(n_rows)
        of_size.compute_infer.add(seconds)
        self.n_rows += n_rows
        self.n_batches += 1


class Asked:
    """Counts a request to some models while it is entered: a success, a failure, or neither where it is given up.

    A request that breaks a rule does not count: no model was asked.
    """

    __slots__ = ("_models", "_started_s")

    def __init__(self, *models: ModelStatistics) -> None:
        self._models = models

    def __enter__(self) -> None:
        self._started_s = time.monotonic()

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if isinstance(error, InputError | asyncio.CancelledError):
            return
        seconds, last_ms = time.monotonic() - self._started_s, round(time.time() * _MS)
        for model in self._models:
            model.last_ms = last_ms
            (model.inference.success if error is None else model.inference.fail).add(seconds)

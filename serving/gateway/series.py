"""What is measured of one model: its series, looked up once, and the spans of the requests that are traced."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from serving.gateway import tracing
from serving.gateway.histogram import Histogram, HistogramSeries
from serving.gateway.statistics import Duration, ModelStatistics
from serving.gateway.tracing import Span
from serving.runtime import protocol
from serving.runtime.protocol import ServedModel

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SHORT = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)
MODEL = ("model", "version")


class Queued(Protocol):
    """A request in a queue. queued_s: since when, on `time.monotonic()`. span: or None."""

    queued_s: float
    span: Span | None


class ModelMetrics:
    """Everything that is measured by model and version, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, what: str) -> Counter:
            return Counter(name, what, MODEL, registry=registry)

        def histogram(name: str, what: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, what, MODEL, buckets=buckets, registry=registry)

        self.queue_length = Gauge("rankyard_queue_length", "Requests waiting for a model.", MODEL, registry=registry)
        self.queue_seconds = histogram("rankyard_queue_seconds", "How long a request waited for a worker.", SECONDS)
        self.batch_size = histogram("rankyard_batch_size", "Requests in a batch.", _SIZES)
        self.padding = histogram("rankyard_batch_padding_ratio", "Share of a batch's cells that is padding.", _SHARES)
        self.model_seconds = histogram("rankyard_model_seconds", "Time of one batch in the runtime.", SECONDS)
        self.encode_seconds = histogram("rankyard_encode_seconds", "From a request to a model's input.", _SHORT)
        self.decode_seconds = histogram("rankyard_decode_seconds", "From a model's output to an answer.", _SHORT)
        self.phase_seconds = histogram(
            "rankyard_phase_seconds", "Time of a phase of ranking, its queue included.", SECONDS
        )
        self.rejected = counter("rankyard_rejected", "Requests refused because a queue was full.")
        self.dropped = counter("rankyard_dropped", "Requests dropped before they cost anything: expired, or given up.")
        self.degraded = counter("rankyard_degraded", "Rankings answered without this phase's model.")

    def forget(self, served: ServedModel) -> None:
        """Drop a model's series."""
        for metric in vars(self).values():
            with suppress(KeyError):
                metric.remove(served.name, served.version)


class ModelSeries:
    """One model's series."""

    def __init__(self, metrics: ModelMetrics, served: ServedModel) -> None:
        labels = (served.name, served.version)
        manifest = served.bundle.manifest
        self._encoding = "tokenize" if manifest.family != "ranking" or manifest.reads_texts else "encode"
        self._attributes: tracing.Attributes = {"rankyard.model": served.name, "rankyard.version": served.version}
        self._queue_length = metrics.queue_length.labels(*labels)
        self._queue_seconds = metrics.queue_seconds.labels(*labels)
        self._batch_size = metrics.batch_size.labels(*labels)
        self._padding = metrics.padding.labels(*labels)
        self._model_seconds = metrics.model_seconds.labels(*labels)
        self._encode_seconds = metrics.encode_seconds.labels(*labels)
        self._decode_seconds = metrics.decode_seconds.labels(*labels)
        self._phase_seconds = metrics.phase_seconds.labels(*labels)
        self._dropped = metrics.dropped.labels(*labels)
        self.statistics = ModelStatistics()
        """Totals, for those who ask as a Triton server is asked."""
        self.rejected = metrics.rejected.labels(*labels)
        """Requests that found the queue full."""
        self.degraded = metrics.degraded.labels(*labels)
        """Rankings that had to do without this model."""

    def queue(self, length: Callable[[], int]) -> None:
        """Ask `length` at every scrape how many requests wait."""
        self._queue_length.set_function(length)

    def taken(self, batch: Sequence[Queued], now: float, padding: float | None) -> None:
        """Measure a batch that leaves the queue at `now`, on the clock of `time.monotonic()`.

        padding: share of its cells that is padding, None where there can be none.
        """
        self._batch_size.observe(len(batch))
        for item in batch:
            self._queue_seconds.observe(now - item.queued_s)
            self.statistics.inference.queue.add(now - item.queued_s)
            if item.span is not None:
                item.span.record("queue", item.queued_s, now, self._attributes)
        if padding is not None:
            self._padding.observe(padding)

    def decoded(self, batch: Sequence[Queued], begin_s: float) -> None:
        """Measure how long the outputs of several requests took to become answers, since `begin_s`."""
        now = time.monotonic()
        for item in batch:
            self._decode_seconds.observe(now - begin_s)
            self.statistics.inference.compute_output.add(now - begin_s)
            if item.span is not None:
                item.span.record("decode", begin_s, now, self._attributes)

    def dropped(self, item: Queued) -> None:
        """Count a request that left the queue unanswered, before it cost anything."""
        self._dropped.inc()
        if item.span is not None:
            item.span.record("queue", item.queued_s, time.monotonic(), self._attributes)

    def infer(self, batch: Sequence[Queued], n_rows: int) -> Inferring:
        """Measure the runtime's time on a batch of so many rows."""
        return Inferring(self._model_seconds, batch, self._attributes, self.statistics, n_rows)

    def encode(self) -> Timed:
        """Measure how long a request takes to become the model's input, while it is entered."""
        return Timed(self._encode_seconds, self._encoding, self._attributes, self.statistics.inference.compute_input)

    def decode(self) -> Timed:
        """Measure how long the model's output takes to become an answer, while it is entered."""
        return Timed(self._decode_seconds, "decode", self._attributes, self.statistics.inference.compute_output)

    def phase(self) -> Timed:
        """Measure a phase of ranking by this model, while it is entered."""
        return Timed(self._phase_seconds, "phase", self._attributes)


class Timed:
    """Measures a time into a histogram and, where the request is traced, into a span that holds those begun within.

    total: what it is added to as well.
    """

    __slots__ = ("_attributes", "_histogram", "_name", "_outer", "_span", "_started_s", "_total")

    def __init__(
        self, histogram: HistogramSeries, name: str, attributes: tracing.Attributes, total: Duration | None = None
    ) -> None:
        self._total = total
        self._histogram = histogram
        self._name = name
        self._attributes = attributes
        self._span: Span | None = None

    def __enter__(self) -> None:
        self._started_s = time.monotonic()
        self._outer = tracing.current.get()
        if self._outer is not None:
            self._span = self._outer.child(self._name, self._started_s)
            self._span.attributes = self._attributes
            tracing.current.set(self._span)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        now = time.monotonic()
        self._histogram.observe(now - self._started_s)
        if self._total is not None:
            self._total.add(now - self._started_s)
        if self._span is not None:
            self._span.end_s = now
            tracing.current.set(self._outer)


class Inferring:
    """Measures a batch in the runtime, from `begin` to `end`.

    While it is entered the runtime is asked: its calls elsewhere belong to the first request that is traced.
    """

    __slots__ = (
        *("_attributes", "_histogram", "_is_entered", "_n_requests", "_n_rows", "_spans", "_started_s", "_statistics"),
    )

    def __init__(
        self,
        histogram: HistogramSeries,
        batch: Sequence[Queued],
        attributes: tracing.Attributes,
        statistics: ModelStatistics,
        n_rows: int,
    ) -> None:
        self._histogram = histogram
        self._statistics = statistics
        self._n_requests, self._n_rows = len(batch), n_rows
        self._spans = [item.span for item in batch if item.span is not None]
        self._attributes = {**attributes, "rankyard.batch_size": len(batch)} if self._spans else attributes
        self._started_s = time.monotonic()
        self._is_entered = False

    def begin(self, now_s: float) -> None:
        """A worker has begun: what was before, the batch stood ready."""
        self._started_s = now_s
        if self._is_entered:
            for span in self._spans:
                span.start_s = now_s

    def __enter__(self) -> None:
        self._is_entered = True
        if self._spans:
            self._spans = [span.child("infer", self._started_s) for span in self._spans]
            first = self._spans[0]
            protocol.trace_context.set((first.traceparent, first.trace.state))

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._spans:
            protocol.trace_context.set(None)

    @property
    def seconds(self) -> float:
        """How long a worker has had it."""
        return time.monotonic() - self._started_s

    def end(self, *, is_right: bool) -> None:
        """The runtime has answered, or failed; nothing, where it was never asked."""
        if not self._is_entered:
            return
        now = time.monotonic()
        self._histogram.observe(now - self._started_s)
        if is_right:
            self._statistics.ran(self._n_requests, self._n_rows, now - self._started_s)
        for span in self._spans:
            span.end_s = now
            span.attributes = self._attributes

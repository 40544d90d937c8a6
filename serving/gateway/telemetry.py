"""What a gateway measures of itself, for Prometheus. Labels are bounded: routes, statuses, the models served."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)


class ModelTelemetry:
    """One model's series, looked up once."""

    def __init__(self, telemetry: Telemetry, ref: str) -> None:
        self.batch_size = telemetry.batch_size.labels(ref)
        self.padding = telemetry.padding.labels(ref)
        self.model_seconds = telemetry.model_seconds.labels(ref)
        self.rejected = telemetry.rejected.labels(ref)
        self.dropped = telemetry.dropped.labels(ref)


class Telemetry:
    """All series of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._models: dict[str, ModelTelemetry] = {}
        self._routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._requests = Counter("rankyard_requests", "Answered requests.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "rankyard_request_seconds",
            "From the request's head to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_length = Gauge(
            "rankyard_queue_length", "Requests waiting for a model.", ["model"], registry=registry
        )
        self.batch_size = Histogram(
            "rankyard_batch_size", "Requests in a batch.", ["model"], buckets=_SIZES, registry=registry
        )
        self.padding = Histogram(
            "rankyard_batch_padding_ratio",
            "Share of a batch's cells that is padding.",
            ["model"],
            buckets=_SHARES,
            registry=registry,
        )
        self.model_seconds = Histogram(
            "rankyard_model_seconds",
            "Time of one batch in the runtime.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.rejected = Counter(
            "rankyard_rejected", "Requests refused because a queue was full.", ["model"], registry=registry
        )
        self.dropped = Counter(
            "rankyard_dropped",
            "Requests dropped before they cost anything: expired, or given up.",
            ["model"],
            registry=registry,
        )
        cache = Counter(
            "rankyard_cache",
            "Queries by where their answer came from: hit (this process), shared (Redis), joined (somebody was asking "
            "it), miss.",
            ["result"],
            registry=registry,
        )
        self.cache_hits, self.cache_shared_hits = cache.labels("hit"), cache.labels("shared")
        self.cache_joined, self.cache_misses = cache.labels("joined"), cache.labels("miss")
        self.cache_bytes = Gauge(
            "rankyard_cache_bytes", "What the answers kept in this process take.", registry=registry
        )
        self.runtime_degraded = Gauge(
            "rankyard_runtime_degraded",
            "1 while another runtime answers than the one that should.",
            registry=registry,
        )
        self._degraded = Counter(
            "rankyard_degraded", "Rankings answered without this phase's model.", ["model"], registry=registry
        )

    def model(self, ref: str, queue_length: Callable[[], int]) -> ModelTelemetry:
        """Series of the model `ref`; `queue_length` is asked at every scrape."""
        self.queue_length.labels(ref).set_function(queue_length)
        return self._models.setdefault(ref, ModelTelemetry(self, ref))

    def forget(self, ref: str) -> None:
        """Drop the series of a model that is served no more: versions come and go, series must not grow with them."""
        self._models.pop(ref, None)
        for series in (
            self.queue_length,
            self.batch_size,
            self.padding,
            self.model_seconds,
            self.rejected,
            self.dropped,
            self._degraded,
        ):
            with suppress(KeyError):
                series.remove(ref)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request and its time."""
        series = self._routes.get((route, status))
        if series is None:
            series = (self._requests.labels(route, str(status)), self._seconds.labels(route))
            self._routes[route, status] = series
        series[0].inc()
        series[1].observe(seconds)

    def degraded(self, ref: str) -> None:
        """Count a ranking that had to do without the model `ref`."""
        self._degraded.labels(ref).inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

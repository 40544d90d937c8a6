"""What a gateway measures of itself, for Prometheus: `deploy/README.md` lists the series.

Labels are bounded: routes, statuses, and the names and versions of the models that are served now.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from serving.gateway.histogram import Histogram, HistogramSeries
from serving.gateway.series import MODEL, SECONDS, ModelMetrics, ModelSeries
from serving.runtime.fallback import Reason
from serving.runtime.protocol import ServedModel

CONTENT_TYPE = CONTENT_TYPE_LATEST

_DIGEST_SHOWN = 12


class Telemetry:
    """All series of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        # Of no use to any rule or panel, and half as many series again.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._metrics = ModelMetrics(registry)
        self._models: dict[str, ModelSeries] = {}
        self._holders: Count[str] = Count()
        self._routes: dict[tuple[str, int], tuple[Counter, HistogramSeries]] = {}

        def gauge(name: str, what: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(name, what, labels, registry=registry)

        self._requests = Counter("rankyard_requests", "Answered requests.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "rankyard_request_seconds",
            "From the request's head to its answer.",
            ["route"],
            buckets=SECONDS,
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
        self.connections = gauge("rankyard_connections", "Open connections of clients.")
        self.cache_bytes = gauge("rankyard_cache_bytes", "What the answers kept in this process take.")
        self.cache_max_bytes = gauge("rankyard_cache_max_bytes", "What they may take at most; 0: none are kept.")
        self.cache_answers = gauge("rankyard_cache_answers", "How many answers are kept in this process.")
        self.runtime_degraded = gauge(
            "rankyard_runtime_degraded", "1 while another runtime answers than the one that should."
        )
        self._rerouted = Counter(
            "rankyard_rerouted",
            "Batches that the second runtime was asked for, by why: failed, hedged (later than 95 of 100), late (half "
            "of its time gone), open (the first is left alone).",
            ["reason"],
            registry=registry,
        )
        for reason in get_args(Reason):
            self._rerouted.labels(reason)
        self._served = gauge(
            "rankyard_bundle_info", "1 for every bundle that answers now.", [*MODEL, "family", "digest"]
        )
        self._swaps = Counter(
            "rankyard_swaps", "How often what is served was replaced without a restart.", registry=registry
        )
        self.following_refused = gauge(
            "rankyard_following_refused",
            "1 while what should be served cannot be, and what was served before still is.",
        )
        traces = Counter(
            "rankyard_traces", "Traces by what became of them: sent, dropped.", ["result"], registry=registry
        )
        self.traces_sent, self.traces_dropped = traces.labels("sent"), traces.labels("dropped")

    def add(self, collector: Collector) -> None:
        """Ask `collector` too, at every scrape."""
        self._registry.register(collector)

    def model(self, served: ServedModel) -> ModelSeries:
        """Series of a model."""
        series = self._models.get(served.ref)
        if series is None:
            series = self._models[served.ref] = ModelSeries(self._metrics, served)
        return series

    def hold(self, models: Iterable[ServedModel]) -> None:
        """Show these models' series from now on, at zero until they are used."""
        for served in models:
            self.model(served)
            self._holders[served.ref] += 1

    def release(self, models: Iterable[ServedModel]) -> None:
        """Drop the series of models that nobody holds any more: series must not grow with every version."""
        for served in models:
            self._holders[served.ref] -= 1
            if not self._holders[served.ref]:
                del self._holders[served.ref], self._models[served.ref]
                self._metrics.forget(served)

    def serves(self, models: Iterable[ServedModel], *, is_swap: bool) -> None:
        """Say which bundles answer from now on; is_swap: in place of others."""
        self._served.clear()
        for served in models:
            family, digest = served.bundle.manifest.family, served.bundle.digest[:_DIGEST_SHOWN]
            self._served.labels(served.name, served.version, family, digest).set(1)
        self.following_refused.set(0)
        if is_swap:
            self._swaps.inc()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request and its time."""
        series = self._routes.get((route, status))
        if series is None:
            series = (self._requests.labels(route, str(status)), self._seconds.labels(route))
            self._routes[route, status] = series
        series[0].inc()
        series[1].observe(seconds)

    def rerouted(self, reason: str) -> None:
        """Count a batch that another runtime was asked for."""
        self._rerouted.labels(reason).inc()

    def collect(self) -> list[Metric]:
        """Everything as it is now."""
        return list(self._registry.collect())

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

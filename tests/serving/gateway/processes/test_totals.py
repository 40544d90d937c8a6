"""Sums over processes that come, go, hang and are started again, calculated by hand."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.gateway.histogram import Histogram
from serving.gateway.processes.totals import Family, Totals, families
from serving.gateway.telemetry import Telemetry

MODEL = {"model": "shop-query", "version": "3"}
NEXT = {"model": "shop-query", "version": "4"}


def requests(n: float, **labels: str) -> list[Family]:
    return [Family("rankyard_rejected", "counter", "Refused.", [("rankyard_rejected_total", labels, n)])]


def gauge(name: str, value: float) -> list[Family]:
    return [Family(name, "gauge", "A gauge.", [(name, {}, value)])]


def value(totals: Totals, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    registry = CollectorRegistry()
    registry.register(totals)
    text = generate_latest(registry).decode()
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if (sample.name, sample.labels) == (name, labels or {})
    ]
    assert len(found) <= 1
    return found[0] if found else None


def rejected(totals: Totals, labels: Mapping[str, str] = MODEL) -> float | None:
    return value(totals, "rankyard_rejected_total", labels)


def test_counters_are_sums_of_what_each_process_told_last():
    totals = Totals()
    totals.take(1, requests(5, **MODEL))
    totals.take(2, requests(7, **MODEL))
    assert rejected(totals) == 12
    totals.take(1, requests(6, **MODEL))  # and 2 does not answer
    assert rejected(totals) == 13


def test_what_a_process_has_counted_stays_when_it_ends_and_its_successor_counts_on_top():
    totals = Totals()
    totals.take(1, requests(5, **MODEL))
    totals.take(2, requests(7, **MODEL))
    totals.end(1)
    assert rejected(totals) == 12
    totals.take(1, requests(0, **MODEL))
    assert rejected(totals) == 12
    totals.take(1, requests(9, **MODEL))  # more than the one before had counted
    assert rejected(totals) == 21
    totals.end(1)
    totals.end(1)
    assert rejected(totals) == 21


def test_a_version_that_one_process_serves_no_more_counts_on_until_none_serves_it():
    totals = Totals()
    totals.take(1, requests(5, **MODEL))
    totals.take(2, requests(7, **MODEL))
    totals.take(1, requests(1, **NEXT))
    assert (rejected(totals), rejected(totals, NEXT)) == (12, 1)
    totals.take(2, requests(2, **NEXT))
    assert (rejected(totals), rejected(totals, NEXT)) == (None, 3)


def test_the_past_stays_while_no_process_has_told_yet_what_it_serves():
    totals = Totals()
    totals.take(1, requests(5, **MODEL))
    totals.end(1)
    assert rejected(totals) == 5
    totals.take(1, requests(1, **MODEL))
    assert rejected(totals) == 6


def test_series_do_not_grow_with_versions_and_processes():
    totals, n_series = Totals(), set()
    for version in range(50):
        for process in (1, 2):
            totals.take(process, requests(version, model="shop-query", version=str(version)))
            totals.end(process)
            totals.take(process, requests(1, model="shop-query", version=str(version)))
        n_series.add(sum(len(family.samples) for family in totals.collect()))
    assert n_series == {1}


def test_histograms_are_sums_as_one_process_would_have_observed_all():
    def observed(*amounts: float) -> CollectorRegistry:
        registry = CollectorRegistry()
        histogram = Histogram("seconds", "Time.", ["route"], buckets=(0.1, 1), registry=registry)
        for amount in amounts:
            histogram.labels("/a").observe(amount)
        return registry

    totals = Totals()
    totals.take(1, families(observed(0.0625, 0.5).collect()))
    totals.end(1)
    totals.take(1, families(observed(0.25).collect()))
    totals.take(2, families(observed(4.0).collect()))
    registry = CollectorRegistry()
    registry.register(totals)
    assert generate_latest(registry) == generate_latest(observed(0.0625, 0.5, 0.25, 4.0))


def test_gauges_are_sums_but_for_those_that_say_whether_and_since_when():
    totals = Totals()
    for process, bytes_kept, is_degraded, started_s in ((1, 100, 0, 1_000), (2, 50, 1, 900)):
        told = gauge("rankyard_cache_bytes", bytes_kept)
        told += gauge("rankyard_runtime_degraded", is_degraded) + gauge("process_start_time_seconds", started_s)
        totals.take(process, told)
    assert value(totals, "rankyard_cache_bytes") == 150
    assert value(totals, "rankyard_runtime_degraded") == 1
    assert value(totals, "process_start_time_seconds") == 900
    totals.end(2)
    assert value(totals, "rankyard_cache_bytes") == 100
    assert value(totals, "rankyard_runtime_degraded") == 0


def test_what_one_process_tells_alone_reads_as_it_would_itself():
    telemetry = Telemetry()
    telemetry.answered("/v1/understand", 200, 0.003)
    registry = CollectorRegistry()
    totals = Totals()
    registry.register(totals)
    totals.take(1, families(telemetry.collect()))
    told = {line for line in generate_latest(registry).splitlines() if not line.startswith(b"process_")}
    itself = {line for line in telemetry.exposition().splitlines() if not line.startswith(b"process_")}
    assert told == itself


def test_a_counter_and_a_gauge_of_the_client_library_are_told_apart():
    registry = CollectorRegistry()
    Counter("kept", "Counts.", registry=registry).inc(3)
    Gauge("gone", "Is.", registry=registry).set(3)
    totals = Totals()
    totals.take(1, families(registry.collect()))
    totals.end(1)
    assert (value(totals, "kept_total"), value(totals, "gone")) == (3, None)

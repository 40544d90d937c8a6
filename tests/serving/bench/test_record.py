"""What is counted, by hand and against numpy."""

import base64

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from serving.bench.record import Record


def test_only_what_was_due_in_the_window_is_counted_and_only_what_came_in_it_is_throughput():
    record = Record(10.0, 12.0, limit_ms=50)
    record.answered(9.99, 10.01, 200)  # due before, answered inside
    record.answered(10.00, 10.02, 200)
    record.answered(10.50, 10.60, 200)
    record.answered(11.99, 12.01, 200)  # due inside, answered after
    record.answered(12.00, 12.01, 200)
    record.answered(11.00, 11.01, 503)
    record.failed(11.50, "timeout")
    record.failed(12.50, "timeout")
    found = record.figures()
    assert (found["requests"], found["failed"], found["errors"]) == (5, 2, {"503": 1, "timeout": 1})
    assert found["throughput_per_s"] == 3 / 2
    assert found["goodput_per_s"] == 2 / 2
    assert found["within_limit"] == 2 / 5
    assert found["p50_ms"] == pytest.approx(20, rel=1e-3)
    assert found["max_ms"] == pytest.approx(100, rel=1e-3)
    assert found["mean_ms"] == pytest.approx((20 + 100 + 20) / 3, rel=1e-3)


def test_percentiles_are_those_of_all_latencies_to_a_thousandth():
    record = Record(0.0, 1.0, limit_ms=50)
    latencies_s = np.random.default_rng(0).lognormal(-4, 1, 20_000)
    for latency_s in latencies_s.tolist():
        record.answered(0.5, 0.5 + latency_s, 200)
    found = record.figures()
    for key, percentile in (("p50_ms", 50), ("p95_ms", 95), ("p99_ms", 99), ("p999_ms", 99.9)):
        expected = np.percentile(latencies_s, percentile, method="inverted_cdf") * 1e3
        assert found[key] == pytest.approx(expected, rel=2e-3)
    stored = HdrHistogram.decode(base64.b64decode(found["histogram"]))
    assert stored.get_total_count() == 20_000
    assert stored.get_value_at_percentile(99) / 1e3 == pytest.approx(found["p99_ms"], rel=1e-9)


def test_refusals_have_latencies_of_their_own_and_must_say_when_to_come_back():
    record = Record(10.0, 12.0, limit_ms=50)
    record.refused(9.99, 10.00, is_told_when=False)  # due before
    record.refused(10.00, 10.002, is_told_when=True)
    record.refused(10.50, 10.504, is_told_when=False)
    record.answered(11.00, 11.02, 200)
    found = record.figures()
    assert (found["requests"], found["failed"], found["errors"]) == (3, 2, {"429": 2})
    assert found["refused_p50_ms"] == pytest.approx(2, rel=1e-3)
    assert found["refused_p99_ms"] == pytest.approx(4, rel=1e-3)
    assert found["refused_without_retry_after"] == 1
    assert found["p99_ms"] == pytest.approx(20, rel=1e-3)


def test_a_closed_loop_is_corrected_by_its_median_as_the_histogram_of_java_does():
    record = Record(0.0, 100.0, limit_ms=50)
    for latency_s in [*[0.010] * 100, 0.0155, 1.0]:
        record.answered(5.0, 5.0 + latency_s, 200)
    found = record.corrected()
    # One a 10 ms: behind the second stand 990, 980, ..., 10 ms; behind 15.5 ms would be 5.5, less than an interval.
    values_ms = sorted([*[10.0] * 100, 15.5, 1_000.0, *range(10, 1_000, 10)])
    assert found["expected_interval_ms"] == pytest.approx(10, rel=1e-3)
    for key, percentile in (("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99), ("p999_ms", 99.9)):
        expected = np.percentile(values_ms, percentile, method="inverted_cdf")
        assert found[f"corrected_{key}"] == pytest.approx(expected, rel=2e-3)
    assert record.figures()["p90_ms"] == pytest.approx(10, rel=1e-3)


def test_nothing_answered_has_no_latency():
    record = Record(0.0, 1.0, limit_ms=50)
    assert set(record.corrected().values()) == {None}
    found = record.figures()
    assert (found["requests"], found["p99_ms"], found["within_limit"]) == (0, None, 0)

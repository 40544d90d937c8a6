"""What a load found: latencies in HDR histograms, errors by kind, and what of it was within a limit."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hdrh.histogram import HdrHistogram

_MOST_US = 600_000_000
_DIGITS = 3
"""Significant digits of a latency: to a thousandth of its value."""

_PERCENTILES = (("p50_ms", 50.0), ("p90_ms", 90.0), ("p95_ms", 95.0), ("p99_ms", 99.0), ("p999_ms", 99.9))
_REFUSED_PERCENTILES = (("refused_p50_ms", 50.0), ("refused_p99_ms", 99.0))


class Record:
    """Counts the requests that were due in a window, which begins when the warm-up has ended.

    Moments are seconds on one clock. limit_ms: what `within` and goodput are about. A latency runs from the moment that
    a request was due, not from the one when it could be sent: a server that stalls is charged with everyone it kept
    waiting (the coordinated omission that Gil Tene describes). Percentiles are those of good answers; a failed request
    counts as one beyond every limit.
    """

    def __init__(self, begin_s: float, end_s: float, limit_ms: float) -> None:
        self.begin_s, self.end_s = begin_s, end_s
        self._limit_us = limit_ms * 1e3
        self._histogram = HdrHistogram(1, _MOST_US, _DIGITS)
        self._refused = HdrHistogram(1, _MOST_US, _DIGITS)
        self._n_untold = 0
        self._errors: Counter[str] = Counter()
        self._n_within = 0
        self._n_done_inside = 0
        self._sum_us = 0.0
        self.client_cpu_s = 0.0

    def answered(self, due_s: float, done_s: float, status: int) -> None:
        """Count an answer; any status but 200 is an error of its own kind."""
        if status != 200:
            self.failed(due_s, str(status))
            return
        if self.begin_s <= done_s < self.end_s:
            self._n_done_inside += 1
        if self.begin_s <= due_s < self.end_s:
            latency_us = (done_s - due_s) * 1e6
            self._histogram.record_value(_clipped(latency_us))
            self._sum_us += latency_us
            self._n_within += latency_us <= self._limit_us

    def refused(self, due_s: float, done_s: float, *, is_told_when: bool) -> None:
        """Count a 429; is_told_when: with the header Retry-After."""
        self.failed(due_s, "429")
        if self.begin_s <= due_s < self.end_s:
            self._refused.record_value(_clipped((done_s - due_s) * 1e6))
            self._n_untold += not is_told_when

    def failed(self, due_s: float, kind: str) -> None:
        """Count a request that got no good answer: a status, `connection`, `timeout` or `unsent`."""
        if self.begin_s <= due_s < self.end_s:
            self._errors[kind] += 1

    def figures(self) -> dict[str, Any]:
        """Everything, with units in the names; latencies are null where nothing was answered.

        throughput_per_s: good answers that came within the window. goodput_per_s: those due in it and within the limit.
        refused_*: of those answered 429, latencies, and how many were not told when to come back.
        """
        seconds = self.end_s - self.begin_s
        n_good = int(self._histogram.get_total_count())
        n_failed = self._errors.total()
        latencies = _percentiles(self._histogram, _PERCENTILES)
        return {
            "requests": n_good + n_failed,
            "failed": n_failed,
            "errors": dict(sorted(self._errors.items())),
            "throughput_per_s": round(self._n_done_inside / seconds, 2),
            **latencies,
            "max_ms": round(self._histogram.get_max_value() / 1e3, 3) if n_good else None,
            "mean_ms": round(self._sum_us / n_good / 1e3, 3) if n_good else None,
            "within_limit": round(self._n_within / max(n_good + n_failed, 1), 5),
            "goodput_per_s": round(self._n_within / seconds, 2),
            **_percentiles(self._refused, _REFUSED_PERCENTILES),
            "refused_without_retry_after": self._n_untold,
            "client_cpu_share": round(self.client_cpu_s / seconds, 4),
            "histogram": base64.b64encode(self._histogram.encode()).decode() if n_good else None,
        }

    def corrected(self) -> dict[str, Any]:
        """Give percentiles of a closed loop corrected for coordinated omission; null where nothing was answered.

        A caller that waits for its answer sends nothing during a stall, which therefore counts once. What is missing is
        what it would have sent had it come every `expected_interval_ms`: the median latency, its pace when undisturbed.
        """
        is_empty = not self._histogram.get_total_count()
        interval_us = 0 if is_empty else max(1, int(self._histogram.get_value_at_percentile(50)))
        histogram = self._histogram if is_empty else _corrected(self._histogram, interval_us)
        return {
            "expected_interval_ms": None if is_empty else interval_us / 1e3,
            **{f"corrected_{name}": found for name, found in _percentiles(histogram, _PERCENTILES).items()},
        }


def _corrected(histogram: HdrHistogram, interval_us: int) -> HdrHistogram:
    """Add to every latency those of the requests that its caller would have sent meanwhile, one every `interval_us`.

    As `recordValueWithExpectedInterval` of the HdrHistogram in Java, whose port to Python adds one too many.
    """
    corrected = HdrHistogram(1, _MOST_US, _DIGITS)
    for found in histogram.get_recorded_iterator():
        latency_us, n = found.value_iterated_to, found.count_at_value_iterated_to
        corrected.record_value(latency_us, n)
        for missing_us in range(latency_us - interval_us, interval_us - 1, -interval_us):
            corrected.record_value(missing_us, n)
    return corrected


def _clipped(latency_us: float) -> int:
    return min(max(round(latency_us), 1), _MOST_US)


def _percentiles(histogram: HdrHistogram, names: Sequence[tuple[str, float]]) -> dict[str, float | None]:
    """Milliseconds by name; all None where nothing was recorded."""
    is_empty = not histogram.get_total_count()
    return {
        name: None if is_empty else round(histogram.get_value_at_percentile(percentile) / 1e3, 3)
        for name, percentile in names
    }

"""What a load found: latencies in an HDR histogram, errors by kind, and what of it was within a limit."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

from hdrh.histogram import HdrHistogram

_MOST_US = 600_000_000
_DIGITS = 3
"""Significant digits of a latency: to a thousandth of its value."""

_PERCENTILES = (("p50_ms", 50.0), ("p90_ms", 90.0), ("p95_ms", 95.0), ("p99_ms", 99.0), ("p999_ms", 99.9))


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
            self._histogram.record_value(min(max(round(latency_us), 1), _MOST_US))
            self._sum_us += latency_us
            self._n_within += latency_us <= self._limit_us

    def failed(self, due_s: float, kind: str) -> None:
        """Count a request that got no good answer: a status, `connection`, `timeout` or `unsent`."""
        if self.begin_s <= due_s < self.end_s:
            self._errors[kind] += 1

    def figures(self) -> dict[str, Any]:
        """Everything, with units in the names; latencies are null where nothing was answered.

        throughput_per_s: good answers that came within the window. goodput_per_s: those due in it and within the limit.
        """
        seconds = self.end_s - self.begin_s
        n_good = int(self._histogram.get_total_count())
        n_failed = self._errors.total()
        latencies = {
            name: round(self._histogram.get_value_at_percentile(percentile) / 1e3, 3) if n_good else None
            for name, percentile in _PERCENTILES
        }
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
            "client_cpu_share": round(self.client_cpu_s / seconds, 4),
            "histogram": base64.b64encode(self._histogram.encode()).decode() if n_good else None,
        }

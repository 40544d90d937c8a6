"""What all processes of a gateway have counted together, for one answer to Prometheus.

Counters and histograms are sums and never go back: what a process has counted stays when it ends, and what it last told
stands in for one that does not answer. Gauges are sums over the processes that live, but for those named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from prometheus_client import Metric
from prometheus_client.registry import Collector

_HIGHEST = ("rankyard_bundle_info", "rankyard_following_refused", "rankyard_runtime_degraded")
"""Gauges that are 1 where they are 1 in any process."""
_LOWEST = ("process_start_time_seconds",)
"""Gauges of which the lowest counts: the gateway is as old as its oldest process."""
_COUNTED = ("counter", "histogram")

_Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""Names of the family and of the sample, and the labels."""


class Family(Struct, frozen=True):
    """Series of one name. samples: each with its own name, labels and value."""

    name: str
    kind: str
    documentation: str
    samples: list[tuple[str, dict[str, str], float]]


def families(metrics: Iterable[Metric]) -> list[Family]:
    """Say what was collected in a form that can be sent."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            [(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in metrics
    ]


class Totals(Collector):
    """Sums over processes, which are told apart by number; the number of one that has ended may be used again."""

    def __init__(self) -> None:
        self._described: dict[str, tuple[str, str]] = {}
        """Kind and documentation of every family."""
        self._reports: dict[int, Mapping[_Key, float]] = {}
        """What each process has told last."""
        self._past: dict[_Key, float] = {}
        """What was counted by processes that have ended, and in series that a process has dropped."""

    def take(self, process: int, told: Sequence[Family]) -> None:
        """Hear what a process has counted since it began."""
        report: dict[_Key, float] = {}
        for family in told:
            self._described.setdefault(family.name, (family.kind, family.documentation))
            for name, labels, value in family.samples:
                report[family.name, name, tuple(labels.items())] = value
        self._replace(process, report)

    def end(self, process: int) -> None:
        """Keep what a process has counted, which is no more."""
        self._replace(process, {})

    def collect(self) -> Iterator[Metric]:
        """Sum up, for a scrape."""
        self._forget()
        sums: dict[str, dict[_Key, float]] = {family: {} for family in self._described}
        for report in (*self._reports.values(), self._past):
            for key, value in report.items():
                series = sums[key[0]]
                series[key] = _joined(key[0], series[key], value) if key in series else value
        for family, (kind, documentation) in self._described.items():
            metric = Metric(family, documentation, kind)
            for (_, name, labels), value in sums[family].items():
                metric.add_sample(name, dict(labels), value)
            yield metric

    def _replace(self, process: int, report: Mapping[_Key, float]) -> None:
        for key, value in self._reports.get(process, {}).items():
            if key not in report and self._described[key[0]][0] in _COUNTED:
                self._past[key] = self._past.get(key, 0.0) + value
        self._reports[process] = report

    def _forget(self) -> None:
        """Drop the past of models that no process serves any more: series must not grow with every version."""
        served = {model for report in self._reports.values() for key in report if (model := _model(key)) is not None}
        if served:  # else all processes are just starting
            served_or_none = {None, *served}
            self._past = {key: value for key, value in self._past.items() if _model(key) in served_or_none}


def _joined(family: str, one: float, other: float) -> float:
    if family in _HIGHEST:
        return max(one, other)
    return min(one, other) if family in _LOWEST else one + other


def _model(key: _Key) -> tuple[str, str] | None:
    """Name and version of the model that a series is about; None where it is about none."""
    labels = dict(key[2])
    return (labels["model"], labels["version"]) if "model" in labels else None

"""A sweep as a person reads it: every scheduling at its best load, the finals, the verdict."""

from __future__ import annotations

import csv
import io

from serving.bench.bench import holds
from serving.bench.tables import aligned
from serving.triton.settings import Scheduling
from serving.triton.tuning.search import DEFAULT, Final, Found, Point, described
from serving.triton.tuning.settings import SweepSettings

_FIGURES = ("requests", "failed", "throughput_per_s", "p50_ms", "p95_ms", "p99_ms", "within_limit")
_HEAD = ["instances", "threads", "delay us", "preferred", "load", "answered/s", "p50 ms", "p99 ms", ""]


def summary(found: Found, sweep: SweepSettings) -> str:
    """Two tables and a sentence."""
    coarse = [_coarse_row(points, found) for points in _climbs(found).values()]
    lines = [f"every scheduling at its best load ({sweep.load_name}) with a p99 of at most {sweep.p99_ms:g} ms"]
    lines += aligned([_HEAD, *coarse])
    lines += [f"  {described(scheduling)}: {reason}" for scheduling, reason in found.failures.items()]
    lines += [f"finals, medians of {sweep.repeats} rounds in turns"]
    lines += aligned([_HEAD, *(_final_row(final, found) for final in found.finals)])
    return "\n".join([*lines, verdict(found)])


def verdict(found: Found) -> str:
    """Say what the best gained over the default, or that nothing did."""
    best = found.best
    if found.default is None:
        return (
            f"chosen: {described(best.scheduling)}: {best.throughput_per_s:.0f}/s; "
            "the default breaks the limit at every load of the finals"
        )
    if found.beats_default:
        return (
            f"chosen: {described(best.scheduling)}: {best.throughput_per_s:.0f}/s, {found.gain:.2f} times the "
            f"{found.default.throughput_per_s:.0f}/s of the default, and more in every round"
        )
    return f"nothing beats the default ({described(DEFAULT)}) by 2 % and in every round: it stays"


def points_csv(found: Found) -> str:
    """Every loop as CSV."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*Scheduling.model_fields, "load", "is_final", *_FIGURES])
    for point in found.points:
        values = point.scheduling.model_dump(mode="json").values()
        writer.writerow([*values, point.load, point.is_final, *(point.figures[key] for key in _FIGURES)])
    return out.getvalue()


def _climbs(found: Found) -> dict[Scheduling, list[Point]]:
    climbs: dict[Scheduling, list[Point]] = {}
    for point in found.points:
        if not point.is_final:
            climbs.setdefault(point.scheduling, []).append(point)
    return climbs


def _coarse_row(points: list[Point], found: Found) -> list[str]:
    held = [point for point in points if holds(dict(point.figures))]
    if not held:
        return [*_scheduling(points[0].scheduling), "-", "-", "-", "-", "breaks the limit"]
    best = max(held, key=lambda point: point.figures["throughput_per_s"])
    return [
        *_scheduling(best.scheduling),
        f"{best.load:g}",
        f"{best.figures['throughput_per_s']:.0f}",
        f"{best.figures['p50_ms']:.2f}",
        f"{best.figures['p99_ms']:.2f}",
        _mark(best.scheduling, found),
    ]


def _final_row(final: Final, found: Found) -> list[str]:
    return [
        *_scheduling(final.scheduling),
        f"{final.load:g}",
        f"{final.throughput_per_s:.0f}",
        f"{final.p50_ms:.2f}",
        f"{final.p99_ms:.2f}",
        _mark(final.scheduling, found),
    ]


def _scheduling(scheduling: Scheduling) -> list[str]:
    preferred = ",".join(map(str, scheduling.preferred_batch_sizes)) or "-"
    return [str(scheduling.n_instances), str(scheduling.n_threads), str(scheduling.max_queue_delay_us), preferred]


def _mark(scheduling: Scheduling, found: Found) -> str:
    marks = [
        *(["default"] if scheduling == DEFAULT else []),
        *(["chosen"] if scheduling == found.chosen.scheduling else []),
    ]
    return ", ".join(marks)

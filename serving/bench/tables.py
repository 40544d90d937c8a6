"""A bench's result and its comparison with an earlier one, as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]

_COLUMNS = (
    ("rate_per_s", "offered/s"),
    ("requests", "requests"),
    ("failed", "failed"),
    ("throughput_per_s", "answered/s"),
    ("goodput_per_s", "goodput/s"),
    ("p50_ms", "p50 ms"),
    ("p95_ms", "p95 ms"),
    ("p99_ms", "p99 ms"),
    ("p999_ms", "p99.9 ms"),
    ("max_ms", "max ms"),
)
_COMPARED = (
    ("throughput_per_s", "answered/s"),
    ("goodput_per_s", "goodput/s"),
    ("p50_ms", "p50 ms"),
    ("p95_ms", "p95 ms"),
    ("p99_ms", "p99 ms"),
    ("failed", "failed"),
)

_CORRECTED = (("p50_ms", "p50"), ("p95_ms", "p95"), ("p99_ms", "p99"), ("p999_ms", "p99.9"))
"""Of a closed loop: what its callers left out while they waited, put back."""


def points_of(result: Result) -> list[Result]:
    """Give every loop of a result: the rates of a sweep, or the one that there is."""
    points: list[Result] = result.get("points", [result])
    return points


def figures_table(result: Result) -> str:
    """One line a loop, then errors by kind and what the load itself cost."""
    points = points_of(result)
    limit_ms = result["load"]["p99_limit_ms"]
    columns = [(key, title) for key, title in _COLUMNS if key in points[0]]
    rows = [[_shown(point[key]) for key, _ in columns] for point in points]
    lines = [f"{_described(result)} on {result['url']} ({', '.join(result['models'])})"]
    lines += aligned([[title for _, title in columns], *rows])
    errors: dict[str, int] = {}
    for point in points:
        for kind, n in point["errors"].items():
            errors[kind] = errors.get(kind, 0) + n
    if errors:
        lines.append("failed: " + ", ".join(f"{n} x {kind}" for kind, n in sorted(errors.items())))
    if "points" in result:
        lines.append(f"goodput with a p99 of at most {limit_ms:g} ms: {result['best_goodput_per_s']:.1f}/s")
    else:
        lines.append(f"answered within {limit_ms:g} ms: {result['within_limit']:.2%}")
    if result.get("expected_interval_ms") is not None:
        lines.append(
            f"as who comes every {result['expected_interval_ms']:.3g} ms, even while others wait, would see it: "
            + ", ".join(f"{name} {_shown(result[f'corrected_{key}'])} ms" for key, name in _CORRECTED)
        )
    lines.append(f"the load itself took {max(point['client_cpu_share'] for point in points):.1%} of one core")
    return "\n".join(lines)


def comparison(before: Result, after: Result) -> str:
    """Who answered then; then, now, and now as times of then; a line a figure, of a sweep for every rate."""
    rows = [["", "then", "now", "now / then"]]
    if "points" in after:
        old, new = before["best_goodput_per_s"], after["best_goodput_per_s"]
        within = f"goodput/s with a p99 of at most {after['load']['p99_limit_ms']:g} ms"
        rows.append([within, _shown(old), _shown(new), _ratio(old, new)])
    for old, new in zip(points_of(before), points_of(after), strict=True):
        at = f"{new['rate_per_s']:g}/s: " if "points" in after else ""
        rows += [
            [f"{at}{title}", _shown(old[key]), _shown(new[key]), _ratio(old[key], new[key])] for key, title in _COMPARED
        ]
    return "\n".join([f"then: {before['url']} ({', '.join(before['models'])})", *aligned(rows)])


def _described(result: Result) -> str:
    load = result["load"]
    if load["loop"] == "closed":
        loop = f"closed loop, concurrency {load['concurrency']}"
    else:
        loop = f"open loop, {load['arrivals']} arrivals"
    repeated = "distinct queries" if load["zipf"] is None else f"Zipf {load['zipf']:g} over {load['distinct']} queries"
    return f"{result['scenario']}, {loop}, {repeated}"


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(old: float | None, new: float | None) -> str:
    if old is None or new is None or not old:
        return "-"
    return f"{new / old:.2f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *others = widths
    return [
        "  "
        + "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]

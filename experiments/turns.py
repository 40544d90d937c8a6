"""Several contestants measured in turns, so that what slows the machine slows all of them, and rows of their ratios."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.report import Row

Figures = dict[str, Any]
Measure = Callable[[], Figures]


def in_turns(contestants: Mapping[str, Measure], repetitions: int) -> dict[str, list[Figures]]:
    """Measure everyone `repetitions` times, round by round; every other round goes backwards."""
    found: dict[str, list[Figures]] = {name: [] for name in contestants}
    for repetition in range(repetitions):
        names = list(contestants)
        for name in reversed(names) if repetition % 2 else names:
            figures = contestants[name]()
            found[name].append(figures)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float | int))
            print(f"  {time.strftime('%H:%M:%S')} {name}: {shown[:150]}", file=sys.stderr, flush=True)
    return found


def series(found: Sequence[Figures], key: str) -> list[float]:
    """One figure of every repetition."""
    return [float(figures[key]) for figures in found]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide repetition by repetition: both of one round saw the same machine."""
    return [one / other for one, other in zip(above, below, strict=True)]


def row(data: str, configuration: str, metric: str, values: Sequence[float], **more: Any) -> Row:
    """Give the median of the repetitions, with the smallest and the largest: of five, its 94 % interval."""
    found = {"low": round(min(values), 4), "high": round(max(values), 4), "seconds": 0.0, "served_as": "int8"}
    return Row(
        data=data,
        configuration=configuration,
        metric=metric,
        value=round(statistics.median(values), 4),
        seeds=list(range(len(values))),
        **found | more,
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a median by order statistics: ranks from n/2 -+ 0.98 sqrt(n) (Conover, 3.2)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = max(0, round(n / 2 - reach) - 1), min(n - 1, round(n / 2 + reach))
    return round(ordered[low], 4), round(ordered[high], 4)


def medians(found: Mapping[str, Sequence[Figures]], keys: Sequence[str]) -> dict[str, Figures]:
    """Give every contestant's median of each figure that it has, for the result file."""
    return {
        name: {
            key: round(statistics.median(one[key] for one in figures), 4)
            for key in keys
            if all(one.get(key) is not None for one in figures)
        }
        for name, figures in found.items()
    }

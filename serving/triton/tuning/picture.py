"""Throughput over p99 of every scheduling, drawn without a screen."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from serving.triton.settings import Scheduling
from serving.triton.tuning.search import DEFAULT, Final, Found, Point, described
from serving.triton.tuning.settings import SweepSettings

_DPI = 110
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#a0aec0"


def throughput_over_p99(found: Found, sweep: SweepSettings) -> Figure:
    """Draw each scheduling's loads as a line, the medians of the finals on top, the chosen one marked by a star."""
    figure = Figure(figsize=(8, 5.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    climbs: dict[Scheduling, list[Point]] = {}
    for point in found.points:
        if not point.is_final and point.figures["p99_ms"] is not None:
            climbs.setdefault(point.scheduling, []).append(point)
    chosen = found.chosen.scheduling
    for scheduling, points in sorted(climbs.items(), key=lambda one: (one[0] == chosen, one[0] == DEFAULT)):
        _line(axes, scheduling, points, chosen)
    others = [final for final in found.finals if final.scheduling not in (chosen, DEFAULT)]
    _medians(axes, others, "s", _GREY, 7, "finalists, medians")
    if found.default is not None and chosen != DEFAULT:
        _medians(axes, [found.default], "s", _ORANGE, 8, f"default, median: {found.default.throughput_per_s:.0f}/s")
    best = found.chosen
    _medians(axes, [best], "*", _BLUE, 18, f"chosen, median: {best.throughput_per_s:.0f}/s ({described(chosen)})")
    axes.axvline(sweep.p99_ms, color="black", lw=0.8, ls=":", label=f"limit of p99, {sweep.p99_ms:g} ms")
    axes.set(xlabel="p99, ms", ylabel="answered, requests/s", xscale="log", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return figure


def _line(axes: Axes, scheduling: Scheduling, points: Sequence[Point], chosen: Scheduling) -> None:
    colour = _BLUE if scheduling == chosen else _ORANGE if scheduling == DEFAULT else _GREY
    p99s_ms = [point.figures["p99_ms"] for point in points]
    throughputs = [point.figures["throughput_per_s"] for point in points]
    axes.plot(p99s_ms, throughputs, "o-", color=colour, ms=3, lw=1, alpha=0.5 if colour == _GREY else 0.9)


def _medians(axes: Axes, finals: Sequence[Final], marker: str, colour: str, size: int, label: str) -> None:
    if finals:
        p99s_ms, throughputs = [one.p99_ms for one in finals], [one.throughput_per_s for one in finals]
        axes.plot(p99s_ms, throughputs, marker, color=colour, ms=size, label=label, mec="black", mew=0.6, ls="none")

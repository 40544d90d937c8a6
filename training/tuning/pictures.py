"""What a person looks at after a study: history, curves, importance, each key's values, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from optuna.trial import FrozenTrial, TrialState

from training.tuning.config import Range
from training.tuning.trials import Order

_DPI = 110
_BLUE, _ORANGE, _GREY, _GREEN = "#2b6cb0", "#dd6b20", "#a0aec0", "#2f855a"
_UNITS = {"quality": "quality on valid", "latency": "latency, ms", "size": "size, MB"}
_SCALES = {"size": 1e-6}
_COLUMNS = 3
_DECADE = 10


def pictures(
    trials: Sequence[FrozenTrial],
    order: Order,
    best: FrozenTrial,
    base: FrozenTrial | None,
    front: Sequence[FrozenTrial],
    importances: Mapping[str, float],
) -> dict[str, Figure]:
    """Every figure that the study has something for, by file name without ending."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    figures = {"history": history(trials, base), "keys": keys(complete, order, best)}
    if any(len(trial.intermediate_values) > 1 for trial in trials):
        figures["curves"] = curves(trials, best)
    if importances:
        figures["importance"] = importance(importances)
    for place, cost in enumerate(order.config.objectives[1:], start=1):
        bound = next((one for name, one in order.config.budget.items() if name == cost), None)
        figures[f"front_{cost}"] = pareto(complete, front, best, base, cost, place, bound)
    return figures


def history(trials: Sequence[FrozenTrial], base: FrozenTrial | None) -> Figure:
    """Quality of every trial in order, and the best so far; trials without a value are marked below."""
    figure, axes = _figure(8, 4)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    numbers, values = [trial.number for trial in complete], [trial.values[0] for trial in complete]
    axes.plot(numbers, values, "o", color=_BLUE, ms=5, label="complete")
    axes.step(numbers, np.maximum.accumulate(values), where="post", color=_BLUE, lw=1.5, label="best so far")
    for state, marker, colour, name in (
        (TrialState.PRUNED, "v", _GREY, "stopped early"),
        (TrialState.FAIL, "x", _ORANGE, "failed"),
    ):
        if found := [trial.number for trial in trials if trial.state == state]:
            below = axes.get_xaxis_transform()
            axes.plot(found, [0.02] * len(found), marker, color=colour, ms=5, transform=below, label=name, ls="none")
    if base is not None:
        axes.axhline(base.values[0], ls="--", color=_ORANGE, label=f"base configuration {base.values[0]:.4f}")
    axes.set(xlabel="trial", ylabel=_UNITS["quality"], title=f"best {max(values):.4f} of {len(trials)} trials")
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=5)
    return figure


def curves(trials: Sequence[FrozenTrial], best: FrozenTrial) -> Figure:
    """Quality over the steps of every trial: the best one in colour, those stopped early until they were."""
    figure, axes = _figure(8, 4)
    seen = set()
    for trial in sorted(trials, key=lambda one: (one.number == best.number, one.state == TrialState.COMPLETE)):
        points = sorted(trial.intermediate_values.items())
        if not points:
            continue
        is_best = trial.number == best.number
        is_stopped = trial.state == TrialState.PRUNED
        name = "best" if is_best else "stopped early" if is_stopped else "complete"
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps,
            values,
            color=_ORANGE if is_best else _GREY if is_stopped else _BLUE,
            lw=2 if is_best else 0.8,
            alpha=1 if is_best else 0.6,
            marker="." if len(points) < _FEW_POINTS else None,
            label=None if name in seen else name,
        )
        seen.add(name)
    axes.set(xlabel="step (tree, epoch, or training)", ylabel=_UNITS["quality"])
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return figure


_FEW_POINTS = 10


def importance(importances: Mapping[str, float]) -> Figure:
    """Which keys make the difference in quality, the most important above."""
    names = list(importances)[::-1]
    figure, axes = _figure(7, 1.4 + 0.34 * len(names))
    axes.barh(range(len(names)), [importances[name] for name in names], color=_BLUE)
    for row, name in enumerate(names):
        axes.text(importances[name] + 0.01, row, f"{importances[name]:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(
        xlabel="share of the differences in quality (PED-ANOVA)", xlim=(0, max(importances.values()) * 1.15 + 0.01)
    )
    return figure


def keys(complete: Sequence[FrozenTrial], order: Order, best: FrozenTrial) -> Figure:
    """Quality against the values of each key; later trials are darker, the best one is ringed."""
    names = list(order.space.entries)
    n_columns = min(_COLUMNS, len(names))
    n_rows = math.ceil(len(names) / n_columns)
    figure = Figure(figsize=(3.4 * n_columns, 2.8 * n_rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        _key(axes, name, complete, order, best)
    for axes in grid[:, 0]:
        axes.set_ylabel(_UNITS["quality"], fontsize=8)
    return figure


def pareto(
    complete: Sequence[FrozenTrial],
    front: Sequence[FrozenTrial],
    best: FrozenTrial,
    base: FrozenTrial | None,
    cost: str,
    place: int,
    bound: float | None,
) -> Figure:
    """Quality against a cost: the trials that none beats in everything are joined, and numbered."""
    figure, axes = _figure(7, 4.5)
    scale = _SCALES.get(cost, 1.0)

    def at(trials: Sequence[FrozenTrial]) -> tuple[list[float], list[float]]:
        return [trial.values[place] * scale for trial in trials], [trial.values[0] for trial in trials]

    axes.plot(*at(complete), "o", color=_GREY, ms=5, label="trial")
    joined = sorted(front, key=lambda trial: (trial.values[place], trial.values[0]))
    is_plane = len(best.values) == 2
    axes.plot(*at(joined), "o-" if is_plane else "o", color=_BLUE, ms=6, label="beaten by none in everything")
    for trial in joined:
        where = (trial.values[place] * scale, trial.values[0])
        axes.annotate(str(trial.number), where, xytext=(4, 5), textcoords="offset points", fontsize=7, color=_BLUE)
    if base is not None:
        axes.plot(*at([base]), "s", color=_ORANGE, ms=8, label="base configuration")
    axes.plot(*at([best]), "*", color=_GREEN, ms=15, label="chosen")
    if bound is not None:
        axes.axvline(bound * scale, ls="--", color=_ORANGE, lw=1, label="budget")
    axes.set(xlabel=_UNITS[cost], ylabel=_UNITS["quality"])
    costs = at(complete)[0]
    if max(costs) >= _DECADE * min(costs):
        _logarithmic(axes)
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=5)
    return figure


def _key(axes: Any, name: str, complete: Sequence[FrozenTrial], order: Order, best: FrozenTrial) -> None:
    entry = order.space.entries[name]
    if isinstance(entry, Range):
        if entry.log:
            _logarithmic(axes)
        places = {trial.number: float(trial.params[name]) for trial in complete}
    else:
        shown = [str(value) for value in order.space.labels[name]]
        places = {trial.number: float(shown.index(str(trial.params[name]))) for trial in complete}
        axes.set_xticks(range(len(shown)), [value[:14] for value in shown], fontsize=7, rotation=20)
        axes.set_xlim(-0.5, len(shown) - 0.5)
    numbers = [trial.number for trial in complete]
    values = [trial.values[0] for trial in complete]
    axes.scatter([places[number] for number in numbers], values, c=numbers, cmap="Blues", vmin=-max(numbers) / 2, s=22)
    axes.plot([places[best.number]], [best.values[0]], "o", mfc="none", mec=_ORANGE, ms=10, mew=1.5)
    axes.set_title(name, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _logarithmic(axes: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each decade, or at 1 alone where there are many."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()

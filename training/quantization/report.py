"""What a person sees of the choice of an INT8 recipe: the table and the picture on the run's page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from registry.evaluation import Quantization, RecipeTrial, Report

_DPI = 110
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
_AREA_PER_MB = 8.0
_BUDGETS_SHOWN, _LEAST_TOP = 3.0, 0.1
"""A recipe that loses more than three budgets (and 0.1 points) is drawn at the upper edge: it is out in any case."""


def table(report: Report) -> str:
    """A Markdown table of float32 and of every recipe that was tried; "" where none was."""
    quantization = report.quantization
    if quantization is None or not quantization.trials:
        return ""
    calls = list(quantization.float32_latency_ms)
    head = [
        "recipe",
        "MB",
        "loss, points",
        "error",
        "batch effect",
        *(f"{call}, ms".replace("_", " ") for call in calls),
    ]
    rows = [["float32", f"{report.variants['float32'].size_bytes / 1e6:.1f}", "", "", ""]]
    rows[0] += [f"{quantization.float32_latency_ms[call]:.2f}" for call in calls]
    rows += [_row(trial, quantization, calls) for trial in quantization.trials]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([*_legend(quantization), "", *lines]) + "\n"


def _row(trial: RecipeTrial, quantization: Quantization, calls: list[str]) -> list[str]:
    is_kept = quantization.kept and trial.recipe == quantization.recipe
    return [
        f"**{trial.recipe}**" if is_kept else trial.recipe,
        f"{trial.size_bytes / 1e6:.1f}",
        f"{trial.loss * 100:+.2f}",
        f"{trial.error:.4f}",
        f"{trial.batch_effect:.1e}",
        *(f"{trial.latency_ms[call]:.2f}" for call in calls),
    ]


def _legend(quantization: Quantization) -> Iterator[str]:
    verdict = f"{quantization.recipe} is kept" if quantization.kept else "none is kept"
    yield (
        f"INT8 recipes on valid: {verdict}. Loss: float32 minus INT8 of {quantization.measure}, budget "
        f"{quantization.max_loss * 100:g} points. Error: root mean square of the outputs' differences by their spread. "
        "Batch effect: largest difference of an output between alone and in a batch."
    )


def picture(report: Report) -> Figure | None:
    """Loss against milliseconds of the largest batch on one core, size as area; None where nothing was timed.

    Points are numbered from the fastest on, and named beside the picture.
    """
    quantization = report.quantization
    calls = [call for call in (quantization.float32_latency_ms if quantization else {}) if call.startswith("one_core")]
    if quantization is None or not calls:
        return None
    call = calls[-1]
    points = [("float32", quantization.float32_latency_ms[call], 0.0, report.variants["float32"].size_bytes, _GREY)]
    for trial in quantization.trials:
        colour = _ORANGE if quantization.kept and trial.recipe == quantization.recipe else _BLUE
        points.append((trial.recipe, trial.latency_ms[call], trial.loss * 100, trial.size_bytes, colour))
    points.sort(key=lambda point: point[1])
    budget = quantization.max_loss * 100
    top = max(_BUDGETS_SHOWN * budget, _LEAST_TOP)

    figure = Figure(figsize=(9.5, 5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, ms, loss, size_bytes, colour) in enumerate(points, start=1):
        label = f"{number}  {name}: {ms:.1f} ms, {loss:+.2f}, {size_bytes / 1e6:.0f} MB"
        area = _AREA_PER_MB * size_bytes / 1e6
        axes.scatter(ms, min(loss, top), s=area, color=colour, alpha=0.45, edgecolors="white", label=label)
        axes.annotate(str(number), (ms, min(loss, top)), ha="center", va="center", fontsize=8)
    axes.axhline(budget, color=_ORANGE, linestyle="--", linewidth=1)
    axes.annotate(f"budget {budget:g}", (0.99, budget), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    measure = quantization.measure or report.main_metric
    axes.set(xlabel=f"milliseconds, {call.replace('_', ' ')}", ylabel=f"points of {measure} lost on valid")
    axes.margins(x=0.1, y=0.15)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    legend: Any = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, labelspacing=0.9)
    for handle in legend.legend_handles:
        handle.set_sizes([20])
    return figure

"""What a person sees of the choice of an INT8 recipe: the table and the picture on the run's page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from registry.evaluation import Quantization, RecipeTrial, Report

_DPI = 110
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
_AREA_PER_MB = 8.0
_SHOWN_LOSS = 2.0
"""Points of loss beyond which a recipe is drawn at the picture's upper edge: it is out in any case."""


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
    """Loss against milliseconds of the largest batch on one core, size as area; None where nothing was timed."""
    quantization = report.quantization
    calls = [call for call in (quantization.float32_latency_ms if quantization else {}) if call.startswith("one_core")]
    if quantization is None or not calls:
        return None
    call = calls[-1]
    figure = Figure(figsize=(8.5, 5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points = [("float32", quantization.float32_latency_ms[call], 0.0, report.variants["float32"].size_bytes, _GREY)]
    for trial in quantization.trials:
        colour = _ORANGE if quantization.kept and trial.recipe == quantization.recipe else _BLUE
        points.append((trial.recipe, trial.latency_ms[call], trial.loss * 100, trial.size_bytes, colour))
    places = []
    for name, ms, loss, size_bytes, colour in points:
        height = min(loss, _SHOWN_LOSS)
        axes.scatter(ms, height, s=_AREA_PER_MB * size_bytes / 1e6, color=colour, alpha=0.55, edgecolors="white")
        beyond = f" ({loss:+.1f})" if loss > _SHOWN_LOSS else ""
        places.append((ms, height, f"{name}, {size_bytes / 1e6:.0f} MB{beyond}"))
    budget = quantization.max_loss * 100
    axes.axhline(budget, color=_ORANGE, linestyle="--", linewidth=1)
    axes.annotate(f"budget {budget:g}", (0.995, budget), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    _label(axes, places)
    axes.set(xlabel=f"milliseconds, {call.replace('_', ' ')}", ylabel=f"points of {quantization.measure} lost on valid")
    axes.margins(x=0.12, y=0.18)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    return figure


def _label(axes: object, places: list[tuple[float, float, str]]) -> None:
    """Write each name beside its point; names of points that lie together are stacked."""
    heights = np.array([height for _, height, _ in places])
    spread = max(float(np.ptp(heights)), 1e-3)
    n_below: dict[tuple[int, int], int] = {}
    widest = max(ms for ms, _, _ in places)
    for ms, height, text in sorted(places):
        cell = (int(ms / widest * 5), round(height / spread * 6))
        n_below[cell] = n_below.get(cell, 0) + 1
        offset = (8, 6 + 11 * (n_below[cell] - 1))
        axes.annotate(text, (ms, height), xytext=offset, textcoords="offset points", fontsize=8)  # type: ignore[attr-defined]

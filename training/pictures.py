"""What a person looks at after a training: figures for the run's page, drawn without a screen or global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.manifest import OOS_LABEL
from models.metrics import N_CALIBRATION_BINS, Ratio, auroc, calibration_bins, class_indices, ece, span_f1_by_type
from registry.evaluation import Latency
from training.data.splits import IntentRows, TaggingRows
from training.evaluate import AnyRows, Evaluation

MAX_CLASSES = 30

_DPI = 110
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
_MAX_NAME = 24


def pictures(rows: AnyRows, evaluation: Evaluation) -> dict[str, Figure]:
    """Every figure that a split's evaluation has something for, by file name without ending."""
    figures: dict[str, Figure] = {}
    labels = rows.labels if isinstance(rows, IntentRows | TaggingRows) else None
    if labels is not None and evaluation.labels is not None:
        figures["confusion_matrix"] = confusion_matrix(labels, evaluation.labels)
        gold_N, predicted_N = class_indices(labels, evaluation.labels)
        confidences_N = evaluation.predictions.answers["confidence"].astype(np.float64)
        figures["reliability_diagram"] = reliability_diagram(confidences_N, gold_N == predicted_N)
        if evaluation.before is not None:
            figures["reliability_before"] = reliability_diagram(*evaluation.before)
        if "scope" in evaluation.predictions.answers:
            log_odds_N = evaluation.predictions.answers["scope"].astype(np.float64)
            is_inside_N = np.array([label != OOS_LABEL for label in labels])
            figures["scope"] = scope_curve(log_odds_N, is_inside_N, evaluation.scope_threshold)
    if isinstance(rows, TaggingRows) and evaluation.tags is not None:
        figures["span_f1_by_type"] = span_f1_bars(span_f1_by_type(rows.tags, evaluation.tags))
    if "ndcg@10" in evaluation.predictions.ratios:
        figures["ndcg_per_query"] = ndcg_per_query(evaluation.predictions.ratios["ndcg@10"])
    return figures


def confusion_matrix(labels: Sequence[str], predicted: Sequence[str]) -> Figure:
    """Rows of each gold class by predicted class; of more than MAX_CLASSES classes, the pairs confused most often."""
    gold_N, predicted_N = class_indices(labels, predicted)
    names = list(dict.fromkeys([*labels, *predicted]))
    counts_CC = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts_CC, (gold_N, predicted_N), 1)
    errors_CC = counts_CC - np.diag(np.diag(counts_CC))
    chosen = sorted(_most_confused(errors_CC), key=lambda i: names[i])
    shown_CC = counts_CC[np.ix_(chosen, chosen)]
    shares_CC = shown_CC / np.maximum(counts_CC[chosen].sum(axis=1, keepdims=True), 1)

    size = 3.0 + 0.33 * len(chosen)
    figure, axes = _figure(max(size + 0.8, 5.5), max(size, 4.5))
    image = axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the gold class", fraction=0.046, pad=0.03)
    for row, column in zip(*np.nonzero(shown_CC), strict=True):
        colour = "white" if shares_CC[row, column] > 0.5 else "black"
        axes.text(column, row, str(shown_CC[row, column]), ha="center", va="center", color=colour, fontsize=7)
    shown = [_shorten(names[i]) for i in chosen]
    axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=8)
    axes.set_yticks(range(len(shown)), shown, fontsize=8)
    axes.set(xlabel="predicted", ylabel="gold")
    part = "" if len(chosen) == len(names) else f", {len(chosen)} most confused of {len(names)} classes"
    axes.set_title(f"{int(errors_CC.sum())} of {len(labels)} rows confused{part}", fontsize=10)
    return figure


def reliability_diagram(confidences_N: NDArray[np.floating], correct_N: NDArray[np.bool_]) -> Figure:
    """Accuracy against confidence in the bins of the calibration error; on the diagonal, confidences are honest."""
    bins_N = calibration_bins(confidences_N)
    n_B = np.bincount(bins_N, minlength=N_CALIBRATION_BINS)
    right_B = np.bincount(bins_N, weights=correct_N, minlength=N_CALIBRATION_BINS)
    filled_B = n_B > 0
    edges_B = np.arange(N_CALIBRATION_BINS) / N_CALIBRATION_BINS
    width = 1 / N_CALIBRATION_BINS

    figure = Figure(figsize=(5.5, 5.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.bar(edges_B[filled_B], (right_B / np.maximum(n_B, 1))[filled_B], width, align="edge", color=_BLUE, ec="white")
    above.plot([0, 1], [0, 1], "--", color=_ORANGE, label="honest")
    above.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    above.set_title(f"expected calibration error {ece(confidences_N, correct_N):.3f}", fontsize=10)
    above.legend(loc="upper left")
    below.bar(edges_B, n_B / max(len(bins_N), 1), width, align="edge", color=_GREY, ec="white")
    below.set(xlabel="confidence", ylabel="share of rows")
    return figure


def scope_curve(
    log_odds_N: NDArray[np.floating], is_inside_N: NDArray[np.bool_], threshold: float | None = None
) -> Figure:
    """Log-odds of being in scope of both kinds of rows, and what every threshold would find at what cost."""
    figure = Figure(figsize=(9, 4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    kinds = (("in scope", is_inside_N, _BLUE), ("oos", ~is_inside_N, _ORANGE))
    edges = np.linspace(log_odds_N.min(), log_odds_N.max() + 1e-6, 41)
    for name, chosen_N, colour in kinds:
        if chosen_N.any():
            weights = np.full(chosen_N.sum(), 1 / chosen_N.sum())
            left.hist(log_odds_N[chosen_N], bins=edges, weights=weights, color=colour, alpha=0.6, label=name)
    left.set(xlabel="log-odds of being in scope", ylabel="share of the rows of a kind")
    inside, oos = np.sort(log_odds_N[is_inside_N]), np.sort(log_odds_N[~is_inside_N])
    cuts = np.unique(log_odds_N)
    if len(inside) and len(oos):
        alarms, recall = 1000 * np.searchsorted(inside, cuts) / len(inside), np.searchsorted(oos, cuts) / len(oos)
        right.plot(alarms, recall, color=_BLUE)
        right.set_title(f"area under the ROC curve {auroc(log_odds_N, is_inside_N):.4f}", fontsize=10)
    if threshold is not None:
        left.axvline(threshold, color="black", ls="--", label="threshold")
        if len(inside) and len(oos):
            at = 1000 * float((inside < threshold).mean()), float((oos < threshold).mean())
            note = f"{at[1]:.2f} found at {at[0]:.0f}"
            right.plot(*at, "o", color=_ORANGE)
            right.annotate(note, at, xytext=(8, -12), textcoords="offset points", fontsize=9)
    left.legend(frameon=False)
    right.set(xlabel="false alarms per 1000 in-scope rows", ylabel="part of the oos rows found", xlim=(0, 200))
    right.set(ylim=(0, 1.02))
    right.grid(alpha=0.3)
    return figure


def ndcg_per_query(ndcg: Ratio) -> Figure:
    """NDCG@10 of every query that has a relevant document: how many at each value, and from the worst to the best."""
    values = np.sort(ndcg.numerator_N[ndcg.denominator_N > 0])
    figure = Figure(figsize=(9, 4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.hist(values, bins=20, range=(0, 1), color=_BLUE, ec="white")
    left.set(xlabel="NDCG@10", ylabel="queries", xlim=(0, 1))
    right.plot(np.linspace(0, 100, len(values)), values, color=_BLUE)
    right.fill_between(np.linspace(0, 100, len(values)), values, color=_BLUE, alpha=0.15)
    right.axhline(ndcg.value, ls="--", color=_ORANGE, label=f"mean {ndcg.value:.3f}")
    right.set(xlabel="queries from worst to best (%)", ylabel="NDCG@10", ylim=(0, 1.02), xlim=(0, 100))
    right.legend(loc="lower right", frameon=False)
    n_empty = len(ndcg.numerator_N) - len(values)
    figure.suptitle(f"{len(values)} queries; {n_empty} without a relevant document left out", fontsize=10)
    return figure


def span_f1_bars(by_type: Mapping[str, Ratio]) -> Figure:
    """Span F1 of every entity type, the most frequent above, with how many spans it was measured on."""
    order = sorted(by_type, key=lambda name: (by_type[name].denominator_N.sum(), name))
    figure, axes = _figure(7, 1.4 + 0.26 * len(order))
    values = [by_type[name].value for name in order]
    axes.barh(range(len(order)), values, color=_BLUE)
    for row, (name, value) in enumerate(zip(order, values, strict=True)):
        n_spans = by_type[name].denominator_N.sum() / 2
        axes.text(1.01, row, f"{value:.2f}  of {n_spans:g}", va="center", fontsize=8)
    axes.set_yticks(range(len(order)), [_shorten(name) for name in order], fontsize=8)
    axes.set(xlabel="span F1, of mean number of gold and predicted spans", xlim=(0, 1), ylim=(-0.7, len(order) - 0.3))
    return figure


def learning_curve(curves: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> Figure:
    """Lines of (step, value) by name, such as `train` and `valid` over epochs; the best point of `valid` is marked."""
    figure, axes = _figure(7, 4)
    for (name, points), colour in zip(curves.items(), (_BLUE, _ORANGE, _GREY, "#2f855a", "#805ad5"), strict=False):
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        axes.plot(steps, values, color=colour, marker="o" if len(steps) <= 30 else None, ms=4, label=name)
        if name == "valid" and len(values):
            best = int(np.argmax(values))
            note = f"{values[best]:.3f}"
            axes.annotate(
                note, (steps[best], values[best]), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9
            )
    axes.set(xlabel=x, ylabel=y)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def latency_bars(variants: Mapping[str, Mapping[str, Latency]]) -> Figure:
    """Median milliseconds of a call by size and variant, the model's part in full colour, whiskers up to p95."""
    calls = list(dict.fromkeys(call for by_call in variants.values() for call in by_call))
    figure, axes = _figure(1.8 + 1.6 * len(calls), 4)
    width = 0.8 / max(len(variants), 1)
    for i, ((variant, by_call), colour) in enumerate(zip(variants.items(), (_BLUE, _ORANGE, _GREY), strict=False)):
        places = np.array([calls.index(call) for call in by_call]) + (i - (len(variants) - 1) / 2) * width
        total, model = ([getattr(one, f"{part}_p50_ms") for one in by_call.values()] for part in ("total", "model"))
        above = [max(one.total_p95_ms - one.total_p50_ms, 0) for one in by_call.values()]
        axes.bar(places, total, width * 0.95, color=colour, alpha=0.4, yerr=[[0] * len(above), above], capsize=3)
        axes.bar(places, model, width * 0.95, color=colour, label=f"{variant}: model, pale: all")
        for place, value, whisker in zip(places, total, above, strict=True):
            axes.text(place, (value + whisker) * 1.08, f"{value:.3g}", ha="center", va="bottom", fontsize=8)
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_xticks(range(len(calls)), [call.replace("_", " ") for call in calls])
    axes.set(ylabel="milliseconds, one thread")
    axes.legend(frameon=False, loc="upper left")
    return figure


def propensity_curve(propensities: Sequence[float]) -> Figure:
    """How likely each position is looked at, beside 1 / position; both axes are logarithmic."""
    positions = np.arange(1, len(propensities) + 1)
    figure, axes = _figure(6, 4)
    axes.plot(positions, propensities, color=_BLUE, marker="o" if len(positions) <= 30 else None, ms=4, label="found")
    axes.plot(positions, 1 / positions, "--", color=_GREY, label="1 / position")
    axes.set(xlabel="position", ylabel="looked at, relative to position 1", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _most_confused(errors_CC: NDArray[np.int64]) -> list[int]:
    """At most MAX_CLASSES classes, from the most frequent error down, so that both sides of an error are seen."""
    rows, columns = np.unravel_index(np.argsort(-errors_CC, axis=None, kind="stable"), errors_CC.shape)
    return list(dict.fromkeys(np.stack([rows, columns], axis=1).ravel().tolist()))[:MAX_CLASSES]


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    return figure, axes


def _shorten(name: str) -> str:
    """A name that fits beside an axis; a dollar sign would begin a formula."""
    return (name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…").replace("$", r"\$")

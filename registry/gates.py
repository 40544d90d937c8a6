"""The gates of a promotion: pure functions from what was measured of two bundles to verdicts, with bounds from YAML.

A gate compares the candidate with a bound, or with the champion on the same examples. Without a champion those that
compare pass, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from models.bootstrap import paired_difference
from models.config import Config
from models.manifest import Contents
from models.metrics import Ratio
from models.ranking import sent_features
from registry.bundle import Bundle
from registry.evaluation import Report
from registry.predictions import Predictions

EQUIVALENT = {"accuracy": "intent_accuracy", "intent_accuracy": "accuracy"}
"""The same question under the names of two families: a joint tagging model may succeed an intent model."""

_NO_CHAMPION = "no champion yet"


class QualityGate(Config):
    """Non-inferior to the champion by a paired bootstrap on the examples that both answered."""

    margin: NonNegativeFloat = 0.01
    """The interval of candidate minus champion must not reach below minus this (0.01: one point)."""
    superior: bool = False
    """Ask for more: the whole interval above 0."""
    min_examples: PositiveInt = 20
    """Shared examples below which nothing can be said."""
    n_resamples: int = Field(default=2000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)


class SlicesGate(Config):
    """No slice clearly worse than the champion: its whole interval below minus the margin."""

    margin: NonNegativeFloat = 0.05
    min_examples: PositiveInt = 30
    """Smaller slices are not judged."""


class ParityGate(Config):
    """The export answers as the library that trained it."""

    max_difference: NonNegativeFloat = 1e-4
    """Of any output value."""
    max_changed_decisions: int = Field(default=0, ge=0)


class Int8Gate(Config):
    """What INT8 may cost where it is served: float32 minus int8 of the measure by which its recipe was chosen."""

    max_loss: NonNegativeFloat = 0.005


class LatencyGate(Config):
    """Milliseconds of one call in process on one thread, from request to answer."""

    percentile: Literal["p50", "p95"] = "p50"
    budget_ms: dict[str, PositiveFloat] = Field(default={"batch_1": 100.0, "list_100": 500.0})
    """By kind of call, as in evaluation.json; each family is held to those that were measured of it."""


class SizeGate(Config):
    """Bytes of the served ONNX file."""

    max_bytes: PositiveInt = 250_000_000


class GatesConfig(Config):
    """Bounds of every gate."""

    quality: QualityGate = QualityGate()
    minimum: dict[str, float] = Field(default={})
    """Metric -> floor, for the metrics that the candidate has; binds first promotions too."""
    slices: SlicesGate = SlicesGate()
    parity: ParityGate = ParityGate()
    int8: Int8Gate = Int8Gate()
    latency: LatencyGate = LatencyGate()
    size: SizeGate = SizeGate()


@dataclass(frozen=True, slots=True)
class Gate:
    """One verdict: the figure, its bound (None where there is nothing to measure), and a sentence."""

    name: str
    value: float | None
    bound: float | None
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one bundle."""

    contents: Contents
    report: Report
    predictions: Predictions

    @classmethod
    def of(cls, bundle: Bundle) -> Evidence:
        """Read it out of a bundle; BundleError where a file is missing or broken."""
        return cls(bundle.manifest, Report.load(bundle.path), Predictions.load(bundle.path))


def judge(config: GatesConfig, candidate: Evidence, champion: Evidence | None) -> list[Gate]:
    """Run every gate; the candidate may be promoted where all have passed."""
    return [
        *_quality(config.quality, candidate, champion),
        *_minimum(config.minimum, candidate.report),
        _slices(config, candidate, champion),
        *_parity(config.parity, candidate.report),
        _int8(config.int8, candidate.report),
        *_latency(config.latency, candidate.report),
        _size(config.size, candidate.report),
        _signature(candidate.contents, champion.contents if champion else None),
    ]


def _quality(config: QualityGate, candidate: Evidence, champion: Evidence | None) -> Iterator[Gate]:
    bound = 0.0 if config.superior else -config.margin
    if champion is None:
        yield Gate("quality", None, bound, True, _NO_CHAMPION)
        return
    main = champion.report.main_metric
    questions = {"quality": main}
    if "intent_accuracy" in champion.predictions.ratios and main != "intent_accuracy":
        questions["quality_intent"] = "intent_accuracy"
    for name, metric in questions.items():
        yield _compared(name, metric, bound, config, candidate, champion)


def _compared(
    name: str, metric: str, bound: float, config: QualityGate, candidate: Evidence, champion: Evidence
) -> Gate:
    ratio = _ratio(candidate.predictions, metric)
    if ratio is None:
        return Gate(
            name, None, bound, False, f"the champion is judged by {metric}, which the candidate does not answer"
        )
    mine, theirs = candidate.predictions.paired(champion.predictions)
    if len(mine) < config.min_examples:
        return Gate(
            name, None, bound, False,
            f"candidate and champion must share at least {config.min_examples} test examples, they share {len(mine)}; "
            "train the candidate with the champion's test file, or the champion anew with the candidate's",
        )  # fmt: skip
    new, old = ratio.take(mine), champion.predictions.ratios[metric].take(theirs)
    difference, low, high = paired_difference(new, old, config.n_resamples, config.confidence)
    if math.isnan(low):
        return Gate(name, None, bound, False, f"{metric} is undefined on the {len(mine)} examples that both answered")
    passed = low > bound if config.superior else low >= bound
    return Gate(
        name, low, bound, passed,
        f"{metric} {new.value:.4f}, champion {old.value:.4f}: difference {difference:+.4f} [{low:+.4f}, {high:+.4f}] "
        f"on {len(mine)} examples; its lower end must be {'above 0' if config.superior else f'at least {bound:+.4f}'}",
    )  # fmt: skip


def _minimum(minimum: Mapping[str, float], report: Report) -> Iterator[Gate]:
    quality = report.served.quality.get(report.known_by)
    metrics = quality.metrics if quality else {}
    for metric, floor in minimum.items():
        if metric in metrics:
            value = metrics[metric]
            yield Gate(f"minimum_{metric}", value, floor, value >= floor, f"{metric} {value:.4f}, at least {floor:.4f}")


def _slices(config: GatesConfig, candidate: Evidence, champion: Evidence | None) -> Gate:
    """Judge by the worst slice's upper end; with S slices each is held to confidence 1 - alpha / S (Bonferroni)."""
    name, bound = "slices", -config.slices.margin
    if champion is None:
        return Gate(name, None, bound, True, _NO_CHAMPION)
    metric = champion.report.main_metric
    ratio = _ratio(candidate.predictions, metric)
    mine, theirs = candidate.predictions.paired(champion.predictions)
    if ratio is None or not len(mine):
        return Gate(name, None, bound, False, "there are no shared answers to compare, see the gate quality")
    masks = _shared_slices(candidate.predictions, champion.predictions, mine, theirs, config.slices.min_examples)
    new, old = ratio.take(mine), champion.predictions.ratios[metric].take(theirs)
    confidence = 1 - (1 - config.quality.confidence) / max(len(masks), 1)
    uppers = {
        slice_name: paired_difference(new.take(mask), old.take(mask), config.quality.n_resamples, confidence)[2]
        for slice_name, mask in masks.items()
    }
    uppers = {slice_name: upper for slice_name, upper in uppers.items() if not math.isnan(upper)}
    if not uppers:
        return Gate(name, None, bound, True, f"no slice has {config.slices.min_examples} shared examples")
    worse = sorted((upper, slice_name) for slice_name, upper in uppers.items() if upper < bound)
    lowest, lowest_name = min((upper, slice_name) for slice_name, upper in uppers.items())
    detail = (
        "worse than the champion: " + ", ".join(f"{slice_name} (at best {upper:+.4f})" for upper, slice_name in worse)
        if worse
        else f"none of {len(uppers)} slices is clearly worse; lowest upper end {lowest:+.4f} ({lowest_name})"
    )
    return Gate(name, lowest, bound, not worse, f"{detail}; must be at least {bound:+.4f}")


def _shared_slices(
    candidate: Predictions,
    champion: Predictions,
    mine: NDArray[np.int64],
    theirs: NDArray[np.int64],
    min_examples: int,
) -> dict[str, NDArray[np.bool_]]:
    """Slices of either model with enough examples, as masks over the pairs; the candidate's where both have one."""
    masks = {name: mask[theirs] for name, mask in champion.slices.items()}
    masks |= {name: mask[mine] for name, mask in candidate.slices.items()}
    return {name: mask for name, mask in masks.items() if mask.sum() >= min_examples}


def _ratio(predictions: Predictions, metric: str) -> Ratio | None:
    return predictions.ratios.get(metric) or predictions.ratios.get(EQUIVALENT.get(metric, ""))


def _parity(config: ParityGate, report: Report) -> Iterator[Gate]:
    difference, changed = report.parity.largest_difference, report.parity.n_changed_decisions
    yield Gate(
        "parity", difference, config.max_difference, difference <= config.max_difference,
        f"the export differs from its source by {difference:.2e}, at most {config.max_difference:.2e}",
    )  # fmt: skip
    yield Gate(
        "parity_decisions", changed, config.max_changed_decisions, changed <= config.max_changed_decisions,
        f"the export decides {changed} of {report.parity.n_examples} examples otherwise than its source, at most "
        f"{config.max_changed_decisions}",
    )  # fmt: skip


def _int8(config: Int8Gate, report: Report) -> Gate:
    if report.served_variant != "int8" or report.quantization is None:
        return Gate("int8_loss", None, config.max_loss, True, "served as float32")
    loss = report.quantization.loss
    measure = report.quantization.measure or report.main_metric
    detail = f"INT8 costs {loss:+.4f} of {measure}, at most {config.max_loss:.4f}"
    return Gate("int8_loss", loss, config.max_loss, loss <= config.max_loss, detail)


def _latency(config: LatencyGate, report: Report) -> Iterator[Gate]:
    for call, budget_ms in config.budget_ms.items():
        if call not in report.served.latency:
            continue
        measured = report.served.latency[call]
        value = measured.total_p50_ms if config.percentile == "p50" else measured.total_p95_ms
        detail = f"{config.percentile} of {call} is {value:.2f} ms, at most {budget_ms:.2f} ms"
        yield Gate(f"latency_{call}_ms", value, budget_ms, value <= budget_ms, detail)


def _size(config: SizeGate, report: Report) -> Gate:
    size = report.served.size_bytes
    detail = f"{report.served_variant} has {size / 1e6:.1f} MB, at most {config.max_bytes / 1e6:.1f} MB"
    return Gate("size_bytes", size, config.max_bytes, size <= config.max_bytes, detail)


def _signature(candidate: Contents, champion: Contents | None) -> Gate:
    """Count what the champion answers or takes that the candidate does not: callers must not notice the change."""
    if champion is None:
        return Gate("signature", None, 0, True, _NO_CHAMPION)
    breaches = list(_breaches(candidate, champion))
    dropped = sorted(set(sent_features(champion)) - set(sent_features(candidate)))
    detail = "; ".join(breaches) or "answers all that the champion answers, and asks for nothing more"
    if dropped:
        detail += f"; does not take {', '.join(dropped)} any more, stop sending it"
    return Gate("signature", len(breaches), 0, not breaches, detail)


def _breaches(candidate: Contents, champion: Contents) -> Iterator[str]:
    if (candidate.family == "ranking") != (champion.family == "ranking"):
        yield f"a {candidate.family} model cannot take the place of a {champion.family} model"
        return
    if lost := sorted(set(champion.labels or ()) - set(candidate.labels or ())):
        yield f"does not know the labels {', '.join(lost)}" if candidate.labels else "does not answer the intent"
    if lost := sorted(_types(champion) - _types(candidate)):
        yield f"does not know the entities {', '.join(lost)}" if candidate.tags else "does not answer the entities"
    if new := sorted(set(sent_features(candidate)) - set(sent_features(champion))):
        yield f"takes the features {', '.join(new)}, which nobody sends to the champion"
    if candidate.reads_texts and not champion.reads_texts:
        yield "needs a text with every candidate, which the champion does not"


def _types(contents: Contents) -> set[str]:
    return {tag.partition("-")[2] for tag in contents.tags or () if "-" in tag}

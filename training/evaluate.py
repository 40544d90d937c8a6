"""Asking an exported model as the gateway would, and judging its answers: the `evaluate` step of the line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import bootstrap
from models.answers import Reading
from models.batch import Arrays, Encoded, collate, split, stacked
from models.intent import answered_label, decode_intents
from models.manifest import OOS_LABEL, Contents, Scope
from models.metrics import (
    MAIN_METRIC,
    Ratio,
    auroc,
    class_indices,
    ece,
    intent_metrics,
    label_set_metrics,
    macro_f1,
    ranking_metrics,
    tagging_metrics,
)
from models.model import Model
from models.scope import inside, scope_log_odds
from models.tagging import TaggingModel
from registry.evaluation import Quality, Slice
from registry.predictions import Predictions
from training.config import EvaluateConfig
from training.data.splits import IntentRows, RankingRows, TaggingRows, example_id
from training.slices import slices

Run = Callable[[Arrays], Arrays]
"""Runs one collated batch, such as `OnnxSession.run`."""

AnyRows = IntentRows | TaggingRows | RankingRows


@dataclass(frozen=True, slots=True)
class Answered:
    """One request's way through a model: its inputs, its outputs (texts: padded to their batch), the decoded answer."""

    encoded: Encoded
    outputs: Arrays
    answer: Any


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A split's judged answers.

    quality: what `evaluation.json` says of them. predictions: what `predictions.npz` keeps of them.
    labels [N], tags [N]: what was predicted, where the family has them. notes: what was counted, for a person to read.
    before: confidences [N] as they were before calibration and the decision on scope, and whether they were right.
    scope_threshold: of the decision on scope, where there is one.
    """

    quality: Quality
    predictions: Predictions
    labels: tuple[str, ...] | None = None
    tags: tuple[tuple[str, ...], ...] | None = None
    notes: tuple[str, ...] = ()
    before: tuple[NDArray[np.float64], NDArray[np.bool_]] | None = None
    scope_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class _Judged:
    """A family's ratios and statistics (functions of example indices), and its predictions."""

    ratios: dict[str, Ratio]
    answers: dict[str, NDArray[np.generic]]
    ids: list[str]
    statistics: Mapping[str, Callable[[NDArray[np.int64]], float]]
    labels: tuple[str, ...] | None = None
    tags: tuple[tuple[str, ...], ...] | None = None
    before: tuple[NDArray[np.float64], NDArray[np.bool_]] | None = None


def answer(model: Model, contents: Contents, run: Run, requests: Sequence[Any], batch_size: int = 32) -> list[Answered]:
    """Encode, batch by length, run and decode; answers come in the order of the requests."""
    encoded = [model.encode(request) for request in requests]
    by_length = sorted(range(len(encoded)), key=lambda i: encoded[i].length)
    answers: dict[int, Answered] = {}
    for begin in range(0, len(by_length), batch_size):
        batch = by_length[begin : begin + batch_size]
        together = [encoded[i] for i in batch]
        outputs = split(run(collate(together, contents.signature)), together, contents.signature)
        readings = model.decode_batch([requests[i] for i in batch], together, outputs)
        answers.update(zip(batch, map(Answered, together, outputs, readings), strict=True))
    return [answers[i] for i in range(len(encoded))]


def evaluate(
    model: Model,
    contents: Contents,
    run: Run,
    rows: AnyRows,
    *,
    config: EvaluateConfig,
    seed: int,
    train_counts: Mapping[str, int] | None = None,
) -> Evaluation:
    """Ask the model everything in `rows` and judge what it says; `train_counts` as in `training.slices`."""
    answered = answer(model, contents, run, rows.requests())
    return judge(model, contents, rows, answered, config=config, seed=seed, train_counts=train_counts)


def judge(
    model: Model,
    contents: Contents,
    rows: AnyRows,
    answered: Sequence[Answered],
    *,
    config: EvaluateConfig,
    seed: int,
    train_counts: Mapping[str, int] | None = None,
) -> Evaluation:
    """Metrics with bootstrap intervals, the main metric on every slice that defines it, and the predictions."""
    if isinstance(rows, IntentRows):
        judged = _judge_intents(contents, rows, answered)
    elif isinstance(rows, TaggingRows):
        judged = _judge_tags(model, contents, rows, answered)
    else:
        judged = _judge_rankings(rows, answered)
    masks = slices(rows, train_counts)
    return Evaluation(
        quality=_quality(judged, masks, MAIN_METRIC[contents.family], len(rows), config, seed),
        predictions=Predictions(
            example_ids=tuple(map(example_id, judged.ids)), ratios=judged.ratios, slices=masks, answers=judged.answers
        ),
        labels=judged.labels,
        tags=judged.tags,
        notes=_notes(contents, rows),
        before=judged.before,
        scope_threshold=None if contents.scope is None else contents.scope.threshold,
    )


def _quality(
    judged: _Judged,
    masks: Mapping[str, NDArray[np.bool_]],
    main_metric: str,
    n_rows: int,
    config: EvaluateConfig,
    seed: int,
) -> Quality:
    settings = (config.n_resamples, config.confidence, seed)
    values = {name: ratio.value for name, ratio in judged.ratios.items()}
    intervals = bootstrap.intervals(judged.ratios, *settings)
    for name, statistic in judged.statistics.items():
        values[name] = statistic(np.arange(n_rows))
        intervals[name] = bootstrap.interval_of(statistic, n_rows, *settings)
    parts: dict[str, Slice] = {}
    for name, mask in masks.items():
        part = judged.ratios[main_metric].take(mask) if main_metric in judged.ratios else None
        if part is not None and part.denominator_N.any():
            parts[name] = Slice(n=int(mask.sum()), value=part.value, interval=bootstrap.interval(part, *settings))
    return Quality(n=n_rows, metrics=values, intervals=intervals, slices=parts)


def _judge_intents(contents: Contents, rows: IntentRows, answered: Sequence[Answered]) -> _Judged:
    labels, confidences_N = _intents(answered)
    answers = _label_answers(contents, labels, confidences_N)
    ids = [f"{text}\n{label}" for text, label in zip(rows.texts, rows.labels, strict=True)]
    if contents.gives_several_labels:
        return _Judged(
            ratios=intent_metrics(rows.labels, labels) | label_set_metrics(rows.sets(), _label_sets(answered)),
            answers=answers,
            ids=ids,
            statistics={},
            labels=labels,
        )
    gold_N, predicted_N = class_indices(rows.labels, labels)
    correct_N = gold_N == predicted_N
    statistics: dict[str, Callable[[NDArray[np.int64]], float]] = {
        "macro_f1": lambda chosen: macro_f1(gold_N[chosen], predicted_N[chosen]),
        "ece": lambda chosen: ece(confidences_N[chosen], correct_N[chosen]),
    }
    likeliest = None
    scope = contents.scope or _own_class(contents)
    if scope is not None:
        among = inside(contents.labels or ())
        log_odds_N = np.array([scope_log_odds(scope, one.outputs, among) for one in answered])
        answers["scope"] = log_odds_N.astype(np.float32)
        likeliest = _likeliest(answered)
        is_inside_N = np.array(rows.labels) != OOS_LABEL
        if is_inside_N.any() and not is_inside_N.all():
            statistics["scope_auroc"] = lambda chosen: auroc(log_odds_N[chosen], is_inside_N[chosen])
    return _Judged(
        ratios=intent_metrics(rows.labels, labels, likeliest),
        answers=answers,
        ids=ids,
        statistics=statistics,
        labels=labels,
        before=_before(contents, rows, answered),
    )


def _own_class(contents: Contents) -> Scope | None:
    """What a model without a decision on scope says by its class `oos`, where it has that."""
    if OOS_LABEL not in (contents.labels or ()):
        return None
    return Scope(weights={"oos_class": 1.0}, threshold=0.0, is_calibrated=False)


def _likeliest(answered: Sequence[Answered]) -> list[str]:
    """The label other than `oos` that stands first in each answer."""
    return [
        next((one.label for one in (intent, *intent.alternatives) if one.label != OOS_LABEL), "")
        for intent in (one.answer.intent for one in answered)
    ]


def _label_sets(answered: Sequence[Answered]) -> list[list[str]]:
    return [[label.label for label in one.answer.intent.labels] for one in answered]


def _before(
    contents: Contents, rows: IntentRows, answered: Sequence[Answered]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidences [N] as they are before calibration and the decision on scope, and whether their labels are right."""
    labels = contents.labels or ()
    logits_NC = stacked([one.outputs for one in answered])["intent_logits"]
    intents = decode_intents(logits_NC, labels, 1.0, n_alternatives=0)
    is_right = [intent.label == label for intent, label in zip(intents, rows.labels, strict=True)]
    return np.array([intent.confidence for intent in intents], dtype=np.float64), np.array(is_right, dtype=np.bool_)


def _judge_tags(model: Model, contents: Contents, rows: TaggingRows, answered: Sequence[Answered]) -> _Judged:
    if not isinstance(model, TaggingModel):
        raise TypeError(f"rows with tags need a tagging model, got {type(model).__name__}")
    texts = rows.requests()
    tags = tuple(map(tuple, model.tags([one.encoded for one in answered], [one.outputs for one in answered])))
    is_joint = rows.labels is not None and contents.labels is not None
    labels, confidences_N = _intents(answered) if is_joint else (None, None)
    # A joint row is the same example as an intent row of its text and label: two such models can be paired.
    gold = ["\t".join(row) for row in rows.tags] if rows.labels is None else rows.labels
    return _Judged(
        ratios=tagging_metrics(rows.tags, tags, rows.labels if is_joint else None, labels),
        answers={} if labels is None or confidences_N is None else _label_answers(contents, labels, confidences_N),
        ids=[f"{text}\n{right}" for text, right in zip(texts, gold, strict=True)],
        statistics={},
        labels=labels,
        tags=tags,
    )


def _judge_rankings(rows: RankingRows, answered: Sequence[Answered]) -> _Judged:
    scores = [np.asarray(one.outputs["score"], dtype=np.float32).reshape(-1) for one in answered]
    ids = [
        "\n".join((query_id, request.text, *request.ids, *map(str, labels_D.tolist())))
        for query_id, request, labels_D in zip(rows.query_ids, rows.lists, rows.labels, strict=True)
    ]
    return _Judged(
        ratios=ranking_metrics(rows.labels, scores),
        answers={
            "scores": np.concatenate([np.empty(0, np.float32), *scores]),
            "offsets": np.cumsum([0, *map(len, scores)], dtype=np.int64),
        },
        ids=ids,
        statistics={},
    )


def _intents(answered: Sequence[Answered]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    intents = [one.answer.intent for one in answered if isinstance(one.answer, Reading) and one.answer.intent]
    return tuple(map(answered_label, intents)), np.array([intent.confidence for intent in intents], np.float64)


def _label_answers(
    contents: Contents, labels: Sequence[str], confidences_N: NDArray[np.float64]
) -> dict[str, NDArray[np.generic]]:
    index = {label: i for i, label in enumerate(contents.labels or ())}
    return {
        "label": np.array([index.get(label, -1) for label in labels], dtype=np.int64),
        "confidence": confidences_N.astype(np.float32),
    }


def _notes(contents: Contents, rows: AnyRows) -> tuple[str, ...]:
    """Say how many rows hold what the model cannot know, so that no one looks for the cause elsewhere."""
    if isinstance(rows, RankingRows):
        return ()
    notes = []
    if rows.labels is not None and contents.labels is not None:
        sets = rows.sets() if isinstance(rows, IntentRows) else [(label,) for label in rows.labels]
        known = set(contents.labels) | ({OOS_LABEL} if contents.scope is not None else set())
        notes += _unknown("label", list(map(set, sets)), known)
    if isinstance(rows, TaggingRows):
        notes += _unknown("tag", [set(tags) for tags in rows.tags], set(contents.tags or ()))
    return tuple(notes)


def _unknown(what: str, found: Sequence[set[str]], known: set[str]) -> list[str]:
    n_rows = sum(not names <= known for names in found)
    if not n_rows:
        return []
    names = sorted(set().union(*found) - known)
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return [f"{n_rows} of {len(found)} rows have a {what} that the model does not know ({shown}); they count as errors"]

"""New rows for a tagger out of its training rows: spans give way to other values of their type.

Slot substitution of Louvan and Magnini 2020, "Simple is better! Lightweight data augmentation for low resource slot
filling and intent classification": every row keeps its pattern, its types and its label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from models.batch import Encoded
from models.errors import InputError
from models.tagging import TaggingModel, spans
from training.data.splits import TaggingRows
from training.fit import Recorder

_SWAP = 0.5
"""Chance that a span is given another value."""

Words = tuple[str, ...]
Values = Mapping[str, Sequence[Words]]
"""For a type its different values, each once: a rare one is as likely as a frequent one."""


def with_swapped(
    rows: TaggingRows, encoded: Sequence[Encoded], model: TaggingModel, n_swapped: int, seed: int, recorder: Recorder
) -> tuple[TaggingRows, list[Encoded]]:
    """`rows` and their tokens [N], then those of rows made of them, `n_swapped` for each; repeatable by `seed`.

    A row that becomes longer than the model reads is left out, and said so.
    """
    made = swapped(rows, n_swapped, seed)
    places: list[int] = []
    examples = list(encoded)
    for place, text in enumerate(made.requests()):
        try:
            examples.append(model.encode(text))
        except InputError:
            continue
        places.append(place)
    if len(places) < len(made):
        recorder.say(
            f"note: {len(made) - len(places)} rows with swapped values are longer than the model reads; left out"
        )
    return rows.joined(made.take(np.array(places, dtype=np.int64))), examples


def swapped(rows: TaggingRows, n_swapped: int, seed: int) -> TaggingRows:
    """`n_swapped` rows for each of `rows` [N], in their order: all once, then all once more.

    Values come from rows of the same label alone: what somebody calls "song" in one intent would belie another.
    """
    generator = np.random.default_rng(seed)
    labels = rows.labels or ("",) * len(rows)
    values = _values(rows, labels)
    made = [
        _swapped(tokens, tags, values[label], generator)
        for _ in range(n_swapped)
        for tokens, tags, label in zip(rows.tokens, rows.tags, labels, strict=True)
    ]
    return replace(
        rows,
        tokens=tuple(tokens for tokens, _ in made),
        tags=tuple(tags for _, tags in made),
        labels=None if rows.labels is None else rows.labels * n_swapped,
    )


def _values(rows: TaggingRows, labels: Sequence[str]) -> dict[str, Values]:
    """The values of every label, by type, in the order in which they are first seen."""
    found: dict[str, dict[str, dict[Words, None]]] = {label: {} for label in labels}
    for tokens, tags, label in zip(rows.tokens, rows.tags, labels, strict=True):
        for span in spans(tags):
            found[label].setdefault(span.type, {})[tokens[span.start : span.end]] = None
    return {label: {name: list(its) for name, its in by_type.items()} for label, by_type in found.items()}


def _swapped(tokens: Words, tags: Words, values: Values, generator: np.random.Generator) -> tuple[Words, Words]:
    for span in reversed(spans(tags)):
        if generator.random() >= _SWAP:
            continue
        its = values[span.type]
        value = its[int(generator.integers(len(its)))]
        value_tags = (f"B-{span.type}", *[f"I-{span.type}"] * (len(value) - 1))
        tokens = (*tokens[: span.start], *value, *tokens[span.end :])
        tags = (*tags[: span.start], *value_tags, *tags[span.end :])
    return tokens, tags

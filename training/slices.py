"""Which examples belong together: a model that is good on the whole may have got worse on a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.tagging import spans
from training.data.splits import IntentRows, RankingRows, TaggingRows

Bounds = tuple[tuple[str, int, float], ...]

_WORDS: Bounds = (("1", 1, 1), ("2-3", 2, 3), ("4-6", 4, 6), ("7+", 7, np.inf))
_DOCUMENTS: Bounds = (("1-4", 1, 4), ("5-9", 5, 9), ("10-49", 10, 49), ("50+", 50, np.inf))


def slices(
    rows: IntentRows | TaggingRows | RankingRows, train_counts: Mapping[str, int] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Masks [N] by name, none empty and none of everything.

    Texts: `class=LABEL`, `type=ENTITY` (texts with a gold entity of that type), `words=2-3`, and with `train_counts`
    (label -> rows in train) `frequency=rare`, `medium`, `frequent`: thirds of the labels by how often they were seen.
    Rankings: `documents=10-49`, `words=...` of the query where it has a text, and `frequency=...`: thirds of these
    queries by how often they were asked, in the rows where they are a click log, else in train (`train_counts` then
    holds its `times_asked`).
    """
    masks: dict[str, NDArray[np.bool_]] = {}
    if isinstance(rows, RankingRows):
        masks |= _by_number("documents", [len(request.ids) for request in rows.lists], _DOCUMENTS)
        masks |= _by_number("words", [len(request.text.split()) for request in rows.lists], _WORDS)
        counts = times_asked(rows) if rows.clicks is not None else train_counts or {}
        asked_N = np.array([counts.get(key, 0) for key in query_keys(rows)], dtype=np.int64)
        masks |= _thirds(asked_N, asked_N.tolist())
    else:
        masks |= _by_number("words", [len(text.split()) for text in rows.requests()], _WORDS)
        if isinstance(rows, TaggingRows):
            masks |= _by_name("type", ({span.type for span in spans(tags)} for tags in rows.tags), len(rows))
        if rows.labels is not None:
            sets = rows.sets() if isinstance(rows, IntentRows) else [(label,) for label in rows.labels]
            masks |= _by_name("class", map(set, sets), len(rows))
            masks |= _by_frequency(rows.labels, train_counts or {})
    return {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}


def _by_number(what: str, numbers: Sequence[int], bounds: Bounds) -> dict[str, NDArray[np.bool_]]:
    numbers_N = np.array(numbers, dtype=np.int64)
    return {f"{what}={name}": (numbers_N >= low) & (numbers_N <= high) for name, low, high in bounds}


def _by_name(what: str, names: Iterable[set[str]], n_rows: int) -> dict[str, NDArray[np.bool_]]:
    masks: dict[str, NDArray[np.bool_]] = {}
    for row, found in enumerate(names):
        for name in found:
            masks.setdefault(f"{what}={name}", np.zeros(n_rows, dtype=np.bool_))[row] = True
    return dict(sorted(masks.items()))


def _by_frequency(labels: Sequence[str], train_counts: Mapping[str, int]) -> dict[str, NDArray[np.bool_]]:
    if not train_counts:
        return {}
    return _thirds(np.array([train_counts.get(label, 0) for label in labels], dtype=np.int64), [*train_counts.values()])


def query_keys(rows: RankingRows) -> list[str]:
    """What makes lists ones of the same query [Q]: its words in lower case, or its id where it has no text."""
    pairs = zip(rows.query_ids, rows.lists, strict=True)
    return [" ".join(request.text.casefold().split()) or query_id for query_id, request in pairs]


def times_asked(rows: RankingRows) -> Counter[str]:
    """How often each query was asked, by key: its lists, or in a click log its result pages."""
    counts: Counter[str] = Counter()
    for number, key in enumerate(query_keys(rows)):
        # A page shows something at the position that was shown most often.
        counts[key] += 1 if rows.clicks is None else int(np.bincount(rows.clicks[number].positions).max())
    return counts


def _thirds(counts_N: NDArray[np.int64], known: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Masks by thirds of the known counts; equal ones stay together, so that thirds exist only where they differ."""
    rare, frequent = np.quantile(known, [1 / 3, 2 / 3], method="inverted_cdf")
    rare_N, frequent_N = counts_N <= rare, counts_N > frequent
    return {
        "frequency=rare": rare_N,
        "frequency=medium": ~rare_N & ~frequent_N,
        "frequency=frequent": frequent_N,
    }

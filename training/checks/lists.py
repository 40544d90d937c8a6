"""Candidate lists: how long, how judged, which teach nothing, and whether the file's order gives the answer away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.ranking import RankRequest
from training.checks.duplicates import normal
from training.checks.finding import Cell, Chart, Finding, Severity, count, examples, percent, verb
from training.checks.ndcg import expected_ndcg
from training.data.splits import RankingRows

_EDGES = (1, 2, 3, 5, 8, 11, 21, 51, 101, 201, 501, 1001)
"""Documents of a list at which a column of the chart begins."""
_MAX_POSITIONS = 20
"""Positions of a click log that the chart shows."""
_ORDERED = 0.5
"""Part of the way from a random order to the best one from which the file's order is called sorted."""


def lists(named: Mapping[str, RankingRows]) -> list[Finding]:
    """Find sizes, relevance, lists without difference, order that leaks, and lists or judgements that stand twice."""
    graded = {name: rows for name, rows in named.items() if rows.clicks is None}
    found = [*_sizes(named), *_clicks(named["train"]), *_relevance(graded), *_without_difference(named["train"])]
    return [*found, *_file_order(graded), *_repeated(named), *_contradictions(graded)]


def _sizes(named: Mapping[str, RankingRows]) -> list[Finding]:
    sizes = {name: np.array([len(labels_D) for labels_D in rows.labels]) for name, rows in named.items()}
    largest = max(int(of_split.max()) for of_split in sizes.values())
    edges = [edge for edge in _EDGES if edge <= largest]
    ends = [*[edge - 1 for edge in edges[1:]], max(largest, edges[-1])]
    names = [str(low) if low == high else f"{low}–{high}" for low, high in zip(edges, ends, strict=True)]
    series = {
        name: tuple(
            (
                np.bincount(np.searchsorted(edges, of_split, side="right") - 1, minlength=len(edges))
                / len(of_split)
                * 100
            ).tolist()
        )
        for name, of_split in sizes.items()
    }
    chart = Chart("documents of a list, share of each split in %", tuple(names), series, "%", "columns")
    train = sizes["train"]
    sentence = (
        f"half of the train lists have at most {int(np.median(train)):,} documents, the shortest {train.min():,}, the "
        f"longest {train.max():,}"
    )
    return [Finding("list_sizes", "note", float(np.median(train)), sentence, chart=chart)]


def _clicks(train: RankingRows) -> list[Finding]:
    if train.clicks is None:
        return []
    positions = np.concatenate([shown.positions for shown in train.clicks])
    clicked = np.concatenate([shown.clicked for shown in train.clicks])
    n_shown = np.bincount(positions)[1:]
    rates = np.bincount(positions, weights=clicked)[1:] / np.maximum(n_shown, 1)
    shown = min(len(rates), _MAX_POSITIONS)
    chart = Chart(
        "clicks per impression at a position, in %",
        tuple(str(position) for position in range(1, shown + 1)),
        {"train": tuple(float(100 * rate) for rate in rates[:shown])},
        "%",
        "columns",
    )
    sentence = (
        f"train is a click log: {count(len(positions), 'impression')} at {count(len(rates), 'position')}, "
        f"{percent(clicked.sum(), len(clicked))} of them clicked"
    )
    return [Finding("clicks", "note", float(clicked.mean()), sentence, chart=chart)]


def _relevance(graded: Mapping[str, RankingRows]) -> list[Finding]:
    if "train" not in graded:
        return []
    counts = {name: Counter(np.concatenate(rows.labels).astype(int).tolist()) for name, rows in graded.items()}
    grades = sorted({grade for of_split in counts.values() for grade in of_split})
    series = {
        name: tuple(100 * of_split[grade] / of_split.total() for grade in grades) for name, of_split in counts.items()
    }
    chart = Chart("relevance, share of each split in %", tuple(map(str, grades)), series, "%", "columns")
    train, n_documents = graded["train"], counts["train"].total()
    n_relevant = sum(n for grade, n in counts["train"].items() if grade > 0)
    n_empty = sum(not labels_D.any() for labels_D in train.labels)
    sentence = (
        f"{percent(n_relevant, n_documents)} of the train documents are relevant, in grades "
        f"{', '.join(map(str, grades))}; {n_empty:,} of the {len(train):,} queries have no relevant document"
    )
    return [Finding("relevance", "note", n_relevant / n_documents, sentence, chart=chart)]


def _without_difference(train: RankingRows) -> list[Finding]:
    n_alike = sum(len(set(labels_D.tolist())) < 2 for labels_D in train.labels)
    if not n_alike:
        return []
    sentence = (
        f"{n_alike:,} of the {len(train):,} train queries ({percent(n_alike, len(train))}) "
        f"{verb(n_alike, 'has', 'have')} one relevance for all documents: nothing is learnt from "
        f"{verb(n_alike, 'it', 'them')}; judge more documents, or leave {verb(n_alike, 'it', 'them')} out"
    )
    severity: Severity = "warning" if n_alike > len(train) / 2 else "note"
    return [Finding("lists_without_difference", severity, n_alike, sentence)]


def _file_order(named: Mapping[str, RankingRows]) -> list[Finding]:
    """Equal scores keep the order they came in: a file sorted by relevance flatters every model with ties."""
    found = []
    for name in sorted(named.keys() - {"train"}):
        rows = named[name]
        sizes = [len(labels_D) for labels_D in rows.labels]
        lists_N = np.repeat(np.arange(len(rows)), sizes)
        labels_N = np.concatenate(rows.labels)
        in_order = expected_ndcg(-np.arange(len(labels_N), dtype=np.float64), labels_N, lists_N)
        at_random = expected_ndcg(np.zeros(len(labels_N)), labels_N, lists_N)
        if in_order > at_random + _ORDERED * (1 - at_random):
            sentence = (
                f"the lists of {name} stand in the order of their relevance (ndcg@10 of the file's order "
                f"{in_order:.3f}, of a random one {at_random:.3f}): equal scores keep the file's order, so an unsure "
                "model is measured too high; shuffle the documents of each list"
            )
            found.append(Finding(f"file_order_{name}", "warning", in_order, sentence))
    return found


def _repeated(named: Mapping[str, RankingRows]) -> list[Finding]:
    """Find queries of one split that stand in another by their text, their id, or all their features."""
    keys = {name: [_query(rows, row) for row in range(len(rows))] for name, rows in named.items()}
    contents = {name: [_content(request) for request in rows.lists] for name, rows in named.items()}
    found = []
    for later, earlier in (("valid", "train"), ("test", "train"), ("test", "valid")):
        if later not in named or earlier not in named:
            continue
        there = {key: row for row, key in reversed(list(enumerate(keys[earlier])))}
        same = {content: row for row, content in reversed(list(enumerate(contents[earlier]))) if content}
        rows: list[Mapping[str, Cell]] = []
        for row, key in enumerate(keys[later]):
            content = contents[later][row]
            twin = there.get(key, same.get(content) if content else None)
            if twin is not None:
                rows.append(
                    {
                        f"query in {later}": _name(named[later], row),
                        f"query in {earlier}": _name(named[earlier], twin),
                        "documents": len(named[later].labels[row]),
                        "same features": "yes" if content and content == contents[earlier][twin] else "no",
                    }
                )
        if rows:
            n_lists = len(named[later])
            sentence = (
                f"{len(rows):,} of the {n_lists:,} {later} queries ({percent(len(rows), n_lists)}) "
                f"{verb(len(rows), 'stands', 'stand')} in {earlier} too: what is measured on them is memory; "
                "split by query"
            )
            found.append(Finding(f"duplicates_{earlier}_{later}", "warning", len(rows), sentence, examples(rows)))
    return found


def _contradictions(named: Mapping[str, RankingRows]) -> list[Finding]:
    """Find a document that is judged otherwise for the same query: twice in a list, or in two lists of one text."""
    of_query: dict[str, list[tuple[str, int]]] = {}
    for name, rows in named.items():
        for row, request in enumerate(rows.lists):
            if request.text or len(set(request.ids)) < len(request.ids):
                key = normal(request.text) or f"{name} {rows.query_ids[row]}"
                of_query.setdefault(key, []).append((name, row))
    found: list[tuple[int, dict[str, Cell]]] = []
    for places in of_query.values():
        requests = [named[name].lists[row] for name, row in places]
        if len(places) > 1 or len(set(requests[0].ids)) < len(requests[0].ids):
            found += _disagreements(named, places)
    if not found:
        return []
    found.sort(key=lambda one: -one[0])
    sentence = (
        f"{count(len(found), 'document')} {verb(len(found), 'is', 'are')} judged with different relevance for the "
        "same query: no model can be right on all of them; agree on one"
    )
    return [Finding("contradictions", "warning", len(found), sentence, examples([row for _, row in found]))]


def _disagreements(
    named: Mapping[str, RankingRows], places: Sequence[tuple[str, int]]
) -> list[tuple[int, dict[str, Cell]]]:
    """Give how far apart the judgements of each document of one query are, where they differ, and its example."""
    said: dict[str, dict[int, str]] = {}
    titles: dict[str, str] = {}
    for name, row in places:
        request = named[name].lists[row]
        for place, (document, label) in enumerate(zip(request.ids, named[name].labels[row].tolist(), strict=True)):
            said.setdefault(document, {}).setdefault(int(label), name)
            titles.setdefault(document, "" if request.texts is None else request.texts[place])
    name, row = places[0]
    return [
        (
            max(grades) - min(grades),
            {
                "query": _name(named[name], row),
                "document": document,
                "title": titles[document],
                "judged": " / ".join(f"{grade} ({split})" for grade, split in sorted(grades.items())),
            },
        )
        for document, grades in said.items()
        if len(grades) > 1
    ]


def _query(rows: RankingRows, row: int) -> str:
    return normal(rows.lists[row].text) or rows.query_ids[row]


def _name(rows: RankingRows, row: int) -> str:
    return rows.lists[row].text or rows.query_ids[row]


_MIN_DOCUMENTS = 5
"""Documents from which two lists with the same features are the same list rather than alike by chance."""
_MAX_HASHED = 8
"""Features of a list that must agree for two lists to be called the same: more would cost more and tell no more."""


def _content(request: RankRequest) -> bytes:
    """Give what lists with the same features have in common; empty where that may be chance: few or equal values."""
    names: Sequence[str] = list(request.features)
    if not names or len(request.ids) < _MIN_DOCUMENTS:
        return b""
    chosen: NDArray[np.int64] = np.unique(np.linspace(0, len(names) - 1, _MAX_HASHED).astype(np.int64))
    columns = [np.asarray(request.features[names[place]]) for place in chosen]
    if all((column_D == column_D[0]).all() or np.isnan(column_D).all() for column_D in columns):
        return b""
    return b"".join(column_D.tobytes() for column_D in columns)

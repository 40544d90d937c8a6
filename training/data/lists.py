"""From one row a document to candidate lists: grouped by query, over one matrix that nothing copies.

Shapes: N documents of a file, F features, D documents of one list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.ranking import RankRequest
from training.data.files import refuse_bad_rows
from training.data.splits import Problems, RankingRows

MAX_LABEL = 31
"""Largest relevance: its gain, 2^31 - 1, is the largest that XGBoost computes with."""


class Columns(Mapping[str, NDArray[np.float32]]):
    """Features by name as views of a list's rows [D, F]: a dictionary of so many arrays would outweigh the numbers."""

    def __init__(self, rows_DF: NDArray[np.float32], places: Mapping[str, int]) -> None:
        self._rows_DF = rows_DF
        self._places = places

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._rows_DF[:, self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class Documents:
    """The rows of a file as columns: everything [N], features [N, F]; texts where the file has them.

    lines: where each row stands in its file, counted from 1, to name it when it breaks a rule.
    """

    query_ids: Sequence[str]
    doc_ids: Sequence[str]
    labels: NDArray[np.float32]
    features: NDArray[np.float32]
    feature_names: tuple[str, ...]
    lines: Sequence[int]
    queries: Sequence[str] | None = None
    titles: Sequence[str] | None = None


def label_problem(label: float) -> str | None:
    """Check a relevance label: an integer from 0 to MAX_LABEL."""
    if 0 <= label <= MAX_LABEL and label == int(label):
        return None
    return f"a label must be an integer from 0 to {MAX_LABEL}, got {label:g}"


def to_rows(documents: Documents, problems: Problems, sha256: str) -> RankingRows:
    """Group by query, in order of first appearance, documents in the order of the file.

    DataError for a label that `label_problem` refuses, an infinite feature, an id that a list holds twice, and two
    texts of one query; and for what `problems` holds already.
    """
    _check_numbers(documents, problems)
    members = _members(documents.query_ids)
    for rows in members.values():
        _check_list(documents, rows, problems)
    refuse_bad_rows(problems, len(documents.lines))
    order = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in members.values()])
    is_grouped = bool(np.all(np.diff(order) == 1))
    # Most files are grouped already: then the lists are views, and nothing is copied.
    features_NF = documents.features if is_grouped else documents.features[order]
    labels_N = documents.labels if is_grouped else documents.labels[order]
    places = {name: place for place, name in enumerate(documents.feature_names)}
    lists: list[RankRequest] = []
    labels: list[NDArray[np.float32]] = []
    start = 0
    for rows in members.values():
        here = slice(start, start + len(rows))
        start = here.stop
        labels.append(labels_N[here])
        lists.append(
            RankRequest(
                ids=tuple([documents.doc_ids[row] for row in rows]),
                text="" if documents.queries is None else documents.queries[rows[0]],
                texts=None if documents.titles is None else tuple([documents.titles[row] for row in rows]),
                features=Columns(features_NF[here], places),
            )
        )
    return RankingRows(tuple(members), tuple(lists), tuple(labels), documents.feature_names, problems.file, sha256)


def with_features(rows: RankingRows, names: tuple[str, ...]) -> RankingRows:
    """The same lists with the features `names` only, of those that they have."""
    kept = tuple(name for name in rows.feature_names if name in set(names))
    lists = tuple(
        RankRequest(one.ids, one.text, one.texts, _only(one.features, kept), one.query_features) for one in rows.lists
    )
    return RankingRows(rows.query_ids, lists, rows.labels, kept, rows.file, rows.sha256)


def _only(features: Mapping[str, NDArray[np.float32]], names: tuple[str, ...]) -> Mapping[str, NDArray[np.float32]]:
    return {name: features[name] for name in names if name in features}


def _members(query_ids: Sequence[str]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for row, query_id in enumerate(query_ids):
        members.setdefault(query_id, []).append(row)
    return members


def _check_numbers(documents: Documents, problems: Problems) -> None:
    labels_N = documents.labels
    is_right = (labels_N >= 0) & (labels_N <= MAX_LABEL) & (labels_N == np.floor(labels_N))
    for row in np.flatnonzero(~is_right).tolist():
        problems.add(documents.lines[row], str(label_problem(float(labels_N[row]))))
    for place, name in enumerate(documents.feature_names):
        for row in np.flatnonzero(np.isinf(documents.features[:, place])).tolist():
            problems.add(documents.lines[row], f"feature {name} must be finite in 32 bits or missing, it is infinite")


def _check_list(documents: Documents, rows: Sequence[int], problems: Problems) -> None:
    ids = [documents.doc_ids[row] for row in rows]
    if len(set(ids)) < len(ids):
        first: dict[str, int] = {}
        for doc_id, row in zip(ids, rows, strict=True):
            if first.setdefault(doc_id, row) != row:
                problems.add(
                    documents.lines[row],
                    f"a document must be once in the list of query {documents.query_ids[row]}, {doc_id} is in "
                    f"{problems.unit} {documents.lines[first[doc_id]]} too",
                )
    if documents.queries is not None:
        for row in rows[1:]:
            if documents.queries[row] != documents.queries[rows[0]]:
                problems.add(
                    documents.lines[row],
                    f"a query_id must have one text, {documents.query_ids[row]} has "
                    f"{documents.queries[rows[0]]!r} and {documents.queries[row]!r}",
                )

"""From one row a document to candidate lists: grouped by query, over one matrix that nothing copies.

Shapes: N documents of a file, F features, D documents of one list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from models.ranking import RankRequest
from training.data.files import refuse_bad_rows
from training.data.splits import Problems, RankingRows

MAX_LABEL = 31
"""Largest relevance: its gain, 2^31 - 1, is the largest that XGBoost computes with."""


_BLOCK_ROWS = 1024


class Columns(Mapping[str, NDArray[np.float32]]):
    """Features by name as views of a list's rows [D, C]: a dictionary of so many arrays would outweigh the numbers.

    places: the column of each name; it may name some of the columns only.
    """

    def __init__(self, rows_DC: NDArray[np.float32], places: Mapping[str, int]) -> None:
        self.rows_DC = rows_DC
        self.places = places

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.rows_DC[:, self.places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


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


def some(names: Sequence[str]) -> str:
    """The first names of many, and how many more there are, for a sentence."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
    return replace(rows, lists=lists, feature_names=kept)


def matrix(rows: RankingRows, names: tuple[str, ...]) -> NDArray[np.float32] | None:
    """Features [N, F] of all lists, `names` [F] as columns, NaN where a list lacks one; None where lists are not rows.

    What `models.ranking.RankingModel.encode` gives list by list. Lists that follow each other in one matrix with these
    columns, as the readers make them, give a view of it: nothing is copied.
    """
    columns = [one.features for one in rows.lists]
    if not all(isinstance(one, Columns) for one in columns) or any(one.query_features for one in rows.lists):
        return None
    known = cast("list[Columns]", columns)
    exact = {name: place for place, name in enumerate(names)}
    if all(one.places is known[0].places or one.places == known[0].places for one in known):
        rows_NC = _joined([one.rows_DC for one in known])
        if known[0].places == exact and rows_NC.shape[1] == len(names):
            return rows_NC
        return _chosen(rows_NC, known[0].places, names)
    return np.concatenate([_chosen(one.rows_DC, one.places, names) for one in known])


def _chosen(rows_NC: NDArray[np.float32], places: Mapping[str, int], names: tuple[str, ...]) -> NDArray[np.float32]:
    values_NF = np.full((len(rows_NC), len(names)), np.nan, dtype=np.float32)
    known = [(column, places[name]) for column, name in enumerate(names) if name in places]
    if known:
        values_NF[:, [column for column, _ in known]] = rows_NC[:, [place for _, place in known]]
    return values_NF


def _joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The parts below each other: a view where they are so already in one matrix."""
    base = parts[0].base
    if base is not None and base.ndim == 2 and base.strides == parts[0].strides:
        starts = [part.__array_interface__["data"][0] for part in parts]
        follows = all(
            part.base is base and start + len(part) * base.strides[0] == after
            for part, start, after in zip(parts, starts, starts[1:], strict=False)
        )
        first = (starts[0] - base.__array_interface__["data"][0]) // base.strides[0]
        if follows and parts[-1].base is base:
            return base[first : first + sum(map(len, parts))]
    return np.concatenate(parts)


def _only(features: Mapping[str, NDArray[np.float32]], names: tuple[str, ...]) -> Mapping[str, NDArray[np.float32]]:
    if isinstance(features, Columns):
        return Columns(features.rows_DC, {name: features.places[name] for name in names})
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
    for start in range(0, len(labels_N), _BLOCK_ROWS):
        # By blocks of rows: a column at a time would fetch the whole matrix from memory once for every few columns.
        is_infinite_BF = np.isinf(documents.features[start : start + _BLOCK_ROWS])
        if is_infinite_BF.any():
            for row, place in np.argwhere(is_infinite_BF).tolist():
                name = documents.feature_names[place]
                rule = f"feature {name} must be finite in 32 bits or missing, it is infinite"
                problems.add(documents.lines[start + row], rule)


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

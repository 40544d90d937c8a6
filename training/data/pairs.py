"""Text pairs: a query, a title and how relevant the one is to the other, a JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.ranking import RankRequest
from training.data.files import Source, read_source, refuse_bad_rows
from training.data.jsonl import objects
from training.data.labels import text_problem
from training.data.lists import MAX_LABEL
from training.data.splits import Problems, RankingRows

KEYS = ("query_id", "query", "doc_id", "title", "label")
_LARGEST = float(np.finfo(np.float32).max)


@dataclass
class _List:
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    documents: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> str | None:
        """Take a row in, or say why not."""
        doc_id = str(row["doc_id"])
        earlier = self.documents.setdefault(doc_id, [])
        if any(row == known for known in earlier):
            return f"a row must not occur twice, query {row['query_id']!r} has that of {doc_id!r} already"
        if earlier and row["title"] != earlier[0]["title"]:
            return f"a doc_id must be one document, {doc_id!r} is {earlier[0]['title']!r} and {row['title']!r}"
        earlier.append(row)
        self.rows.append(row)
        return None


def read_pairs_jsonl(path: Path) -> RankingRows:
    """Read lines {"query_id", "query", "doc_id", "title", "label", "features"?}; other keys hold nothing.

    Lists stand in the order of their first row; their rows need not follow each other. `features` maps names to
    numbers; null and an absent name are missing (NaN). A document may be judged several times in a list: its rows
    then differ in something, be it a key that holds nothing here. DataError names the bad rows.
    """
    source = read_source(path)
    problems = Problems(source.file)
    queries: dict[str, str] = {}
    lists: dict[str, _List] = {}
    names: dict[str, None] = {}
    for line, row in objects(source, KEYS, problems):
        if problem := _row_problem(row):
            problems.add(line, problem)
            continue
        query_id = str(row["query_id"])
        query = queries.setdefault(query_id, row["query"])
        if row["query"] != query:
            problems.add(line, f"a query_id must have one query, {query_id!r} has {query!r} and {row['query']!r}")
        elif problem := lists.setdefault(query_id, _List()).add(row):
            problems.add(line, problem)
        else:
            names.update(dict.fromkeys(row.get("features") or ()))
    refuse_bad_rows(problems, len(lists))
    return _rows(queries, lists, tuple(names), source)


def _rows(
    queries: Mapping[str, str], lists: Mapping[str, _List], names: tuple[str, ...], source: Source
) -> RankingRows:
    requests, labels = [], []
    for query_id, found in lists.items():
        features = [row.get("features") or {} for row in found.rows]
        columns = {name: np.array([row.get(name) for row in features], dtype=np.float32) for name in names}
        ids = tuple(str(row["doc_id"]) for row in found.rows)
        requests.append(RankRequest(ids, queries[query_id], tuple(row["title"] for row in found.rows), columns))
        labels.append(np.array([row["label"] for row in found.rows], dtype=np.float32))
    return RankingRows(tuple(lists), tuple(requests), tuple(labels), names, source.file, source.sha256)


def _row_problem(row: Mapping[str, Any]) -> str | None:
    return (
        id_problem("query_id", row["query_id"])
        or id_problem("doc_id", row["doc_id"])
        or texts_problem(row)
        or _label_problem(row["label"])
        or features_problem(row.get("features"))
    )


def id_problem(key: str, value: object) -> str | None:
    """Check an id: a text with a word in it, or an integer."""
    # True is an int for Python alone.
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return None if is_number else text_problem(key, value)


def texts_problem(row: Mapping[str, Any]) -> str | None:
    """Check query and title; a title may be empty."""
    for key in ("query", "title"):
        if key not in row:
            return f"a row must have both query and title, it lacks {key}"
    if problem := text_problem("query", row["query"]):
        return problem
    return None if row["title"] == "" else text_problem("title", row["title"])


def _label_problem(label: object) -> str | None:
    if isinstance(label, bool) or not isinstance(label, int | float) or label not in range(MAX_LABEL + 1):
        return f"label must be a whole number from 0 to {MAX_LABEL}, got {label!r}"
    return None


def features_problem(features: object) -> str | None:
    """Check `features`: nothing, or numbers by name."""
    if features is None:
        return None
    if not isinstance(features, dict):
        return f"features must map names to numbers, got {features!r}"
    for name, value in features.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
            return f"the feature {name!r} must be a float32 number or null, got {value!r}"
    return None

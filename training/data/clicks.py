"""Click logs: which documents a query's result pages showed, at which position, and which of them were clicked.

One row an impression of a document, as JSON Lines or Parquet:

    {"query_id", "doc_id", "position" (from 1), "clicked" (0 or 1), "features"?: {name: number}, "query"?, "title"?,
     "session_id"?}

In Parquet the features are columns of their own. `session_id` tells result pages apart, so that it can be checked that
a page shows one document at a position; nothing else needs it.
Shapes: I impressions of a file, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import DataError
from training.data.files import digest, read_blocks, read_bytes, read_source, refuse_bad_rows
from training.data.jsonl import objects
from training.data.lists import Documents, to_rows
from training.data.pairs import features_problem, id_problem, texts_problem
from training.data.parquet import TEXTS, check_columns, numbers, open_table, texts
from training.data.splits import Impressions, Problems, RankingRows

KEYS = ("query_id", "doc_id", "position", "clicked")
SESSION = "session_id"
MAX_POSITION = 1000
"""Nobody looks further down; a slip like an id in the place of a position is refused."""


@dataclass(frozen=True)
class _Log:
    """A file's impressions as columns, everything [I]; texts and sessions where the file has them."""

    query_ids: Sequence[str]
    doc_ids: Sequence[str]
    positions: NDArray[np.int64]
    clicked: NDArray[np.float64]
    lines: Sequence[int]
    queries: Sequence[str] | None
    titles: Sequence[str] | None
    sessions: Sequence[str] | None


def read_clicks_jsonl(path: Path) -> RankingRows:
    """Read impressions as JSON Lines; DataError names the bad rows. Otherwise as `read_clicks_parquet`."""
    source = read_source(path)
    problems = Problems(source.file)
    lines, rows = [], []
    for line, row in objects(source, KEYS, problems):
        if problem := _row_problem(row):
            problems.add(line, problem)
        else:
            lines.append(line)
            rows.append(row)
    refuse_bad_rows(problems, len(rows))
    has = {key: sum(key in row for row in rows) for key in ("query", SESSION)}
    for key, n_rows in has.items():
        if n_rows not in (0, len(rows)):
            raise DataError(
                f"{key} must be in every row of {source.file} or in none, {n_rows} of {len(rows)} have it", field=key
            )
    log = _Log(
        [str(row["query_id"]) for row in rows],
        [str(row["doc_id"]) for row in rows],
        np.array([row["position"] for row in rows], dtype=np.int64),
        np.array([row["clicked"] for row in rows], dtype=np.float64),
        lines,
        [row["query"] for row in rows] if has["query"] else None,
        [row["title"] for row in rows] if has["query"] else None,
        [str(row[SESSION]) for row in rows] if has[SESSION] else None,
    )
    names = tuple(dict.fromkeys(name for row in rows for name in row.get("features") or ()))
    latest = _latest(log)
    features = [rows[row].get("features") or {} for row in latest]
    features_NF = np.array([[of_pair.get(name) for name in names] for of_pair in features], dtype=np.float32)
    return _to_rows(log, latest, features_NF, names, problems, source.sha256)


def read_clicks_parquet(path: Path) -> RankingRows:
    """Read impressions as one list a query, of every document that it was shown with, and `clicks` of them.

    Documents stand in the order in which the log first showed them; the features of one are those of its last row, so
    that a rank learns from what is true now. Labels are 0 until `training.clicks` puts in what the clicks say.
    DataError for missing columns and bad rows.
    """
    content = read_bytes(path)
    table = open_table(content, path.name)
    problems = Problems(path.name, unit="row")
    check_columns(table, KEYS, path.name)
    columns = {
        name: texts(table, name, problems)
        for name in ("query_id", "doc_id", *TEXTS, SESSION)
        if name in table.column_names
    }
    positions_I, clicked_I = (numbers(table, name, path.name) for name in ("position", "clicked"))
    for row, (position, clicked) in enumerate(zip(positions_I.tolist(), clicked_I.tolist(), strict=True), start=1):
        if problem := _position_problem(position) or _clicked_problem(clicked):
            problems.add(row, problem)
    refuse_bad_rows(problems, table.num_rows)
    log = _Log(
        columns["query_id"],
        columns["doc_id"],
        positions_I.astype(np.int64),
        clicked_I.astype(np.float64),
        range(1, table.num_rows + 1),
        columns.get("query"),
        columns.get("title"),
        columns.get(SESSION),
    )
    names = tuple(name for name in table.column_names if name not in {*KEYS, *TEXTS, SESSION})
    latest = _latest(log)
    chosen = table.take(pa.array(latest))
    features_NF = np.empty((len(latest), len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        features_NF[:, place] = numbers(chosen, name, path.name)
    return _to_rows(log, latest, features_NF, names, problems, digest(content))


def is_click_log(path: Path) -> bool:
    """Whether a file's rows (JSON Lines: its first one) say what was clicked; no promise that it can be read."""
    if ".parquet" in path.suffixes:
        try:
            return "clicked" in pq.read_schema(pa.BufferReader(read_bytes(path))).names
        except (pa.ArrowException, OSError):
            return False
    first = next((block.lstrip().partition(b"\n")[0] for block in read_blocks(path, 1 << 16) if block.strip()), b"")
    return b'"clicked"' in first


def _latest(log: _Log) -> list[int]:
    """The last row of each pair of query and document, in order of the pairs' first rows."""
    pairs = zip(log.query_ids, log.doc_ids, strict=True)
    return list({pair: row for row, pair in enumerate(pairs)}.values())


def _to_rows(
    log: _Log,
    latest: Sequence[int],
    features_NF: NDArray[np.float32],
    names: tuple[str, ...],
    problems: Problems,
    sha256: str,
) -> RankingRows:
    _check_pages(log, problems)
    documents = Documents(
        query_ids=[log.query_ids[row] for row in latest],
        doc_ids=[log.doc_ids[row] for row in latest],
        labels=np.zeros(len(latest), dtype=np.float32),
        features=features_NF,
        feature_names=names,
        lines=[log.lines[row] for row in latest],
        queries=None if log.queries is None else [log.queries[row] for row in latest],
        titles=None if log.titles is None else [log.titles[row] for row in latest],
    )
    rows = to_rows(documents, problems, sha256)
    return replace(rows, clicks=_by_list(log, rows))


def _by_list(log: _Log, rows: RankingRows) -> tuple[Impressions, ...]:
    """Impressions of each list, its documents by their places."""
    places = {
        (query_id, doc_id): (list_number, place)
        for list_number, (query_id, one) in enumerate(zip(rows.query_ids, rows.lists, strict=True))
        for place, doc_id in enumerate(one.ids)
    }
    found_I2 = np.array([places[pair] for pair in zip(log.query_ids, log.doc_ids, strict=True)], dtype=np.int64)
    order = np.argsort(found_I2[:, 0], kind="stable")
    ends = np.cumsum(np.bincount(found_I2[:, 0], minlength=len(rows)))[:-1]
    columns = (found_I2[order, 1], log.positions[order], log.clicked[order])
    return tuple(Impressions(*parts) for parts in zip(*(np.split(column, ends) for column in columns), strict=True))


def _check_pages(log: _Log, problems: Problems) -> None:
    if log.sessions is None:
        return
    seen: dict[tuple[str, str, int], int] = {}
    for row, session in enumerate(log.sessions):
        page = (session, log.query_ids[row], int(log.positions[row]))
        if (first := seen.setdefault(page, row)) != row:
            problems.add(
                log.lines[row],
                f"a session must show one document at a position, {session} shows another one at position {page[2]} "
                f"in {problems.unit} {log.lines[first]}",
            )


def _row_problem(row: Mapping[str, Any]) -> str | None:
    return (
        id_problem("query_id", row["query_id"])
        or id_problem("doc_id", row["doc_id"])
        or (id_problem(SESSION, row[SESSION]) if SESSION in row else None)
        or (texts_problem(row) if {*TEXTS} & {*row} else None)
        or _position_problem(row["position"])
        or _clicked_problem(row["clicked"])
        or features_problem(row.get("features"))
    )


def _position_problem(position: object) -> str | None:
    if (
        isinstance(position, bool)
        or not isinstance(position, int | float)
        or position not in range(1, MAX_POSITION + 1)
    ):
        return f"position must be a whole number from 1 to {MAX_POSITION}, got {position!r}"
    return None


def _clicked_problem(clicked: object) -> str | None:
    return (
        None if isinstance(clicked, int | float) and clicked in (0, 1) else f"clicked must be 0 or 1, got {clicked!r}"
    )

"""Parquet: `query_id`, `doc_id`, `label` and a column a feature; `query` and `title` make the rows text pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import DataError
from training.data.files import digest, read_bytes, refuse_bad_rows
from training.data.labels import text_problem
from training.data.lists import Documents, to_rows
from training.data.splits import Problems, RankingRows

KEYS = ("query_id", "doc_id", "label")
TEXTS = ("query", "title")


def read_parquet(path: Path) -> RankingRows:
    """Read a file whose columns, but for KEYS and TEXTS, are numeric features; null and NaN are missing.

    Rows of one query need not follow each other. DataError for missing or text columns, and for bad rows: a null key,
    a label that is not an integer from 0, an infinite feature, an id twice in a list, a query without words.
    """
    content = read_bytes(path)
    table = open_table(content, path.name)
    check_columns(table, KEYS, path.name)
    problems = Problems(path.name, unit="row")
    found = {name: texts(table, name, problems) for name in (*KEYS[:2], *TEXTS) if name in table.column_names}
    names = tuple(name for name in table.column_names if name not in {*KEYS, *TEXTS})
    features_NF = np.empty((table.num_rows, len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        features_NF[:, place] = numbers(table, name, path.name)
    labels_N = numbers(table, "label", path.name)
    refuse_bad_rows(problems, table.num_rows)
    documents = Documents(
        query_ids=found["query_id"],
        doc_ids=found["doc_id"],
        labels=labels_N,
        features=features_NF,
        feature_names=names,
        lines=range(1, table.num_rows + 1),
        queries=found.get("query"),
        titles=found.get("title"),
    )
    return to_rows(documents, problems, digest(content))


def open_table(content: bytes, file: str) -> pa.Table:
    """Open a file's content; DataError where it is not Parquet."""
    try:
        return pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} must be a Parquet file, got: {' '.join(str(error).split())}; write it again"
        ) from error


def check_columns(table: pa.Table, keys: Sequence[str], file: str) -> None:
    """Refuse a table that lacks one of `keys`, has a column twice, or one of TEXTS alone."""
    names = table.column_names
    if missing := [name for name in keys if name not in names]:
        raise DataError(
            f"{file} must have the columns {', '.join(keys)}, it lacks {', '.join(missing)}", field=missing[0]
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{file} must have each column once, {', '.join(twice)} is there twice", field=twice[0])
    if len({*TEXTS} & {*names}) == 1:
        raise DataError(f"{file} must have both {' and '.join(TEXTS)} or neither, it has one; add or drop a column")


def numbers(table: pa.Table, name: str, file: str) -> NDArray[np.float32]:
    """One column [N], null as NaN; a value beyond 32 bits becomes infinite."""
    kind = table.schema.field(name).type
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    ):
        raise DataError(
            f"{name} must be a column of numbers, {file} has {kind}; turn it into numbers or drop it", field=name
        )
    column = table.column(name)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    numbers_N: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    with np.errstate(over="ignore"):
        return numbers_N.astype(np.float32)


def texts(table: pa.Table, name: str, problems: Problems) -> list[str]:
    """One column of ids or texts [N]; integers are ids too."""
    kind = table.schema.field(name).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_id = name not in TEXTS and pa.types.is_integer(value_kind)
    if not (
        is_id
        or pa.types.is_string(value_kind)
        or pa.types.is_large_string(value_kind)
        or pa.types.is_string_view(value_kind)
    ):
        raise DataError(
            f"{name} must be a column of text{'' if name in TEXTS else ' or integers'}, {problems.file} has {kind}",
            field=name,
        )
    values = table.column(name).to_pylist()
    for row, value in enumerate(values, start=1):
        if is_id and value is not None:
            continue
        # A title without words is a title: its lexical features are missing or 0.
        problem = None if name == "title" and value == "" else text_problem(name, value)
        if problem:
            problems.add(row, problem)
    return [str(value) for value in values] if is_id else values

"""CSV: labelled texts under a header, fields quoted where they hold commas, quotes or line ends (RFC 4180)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from models.errors import DataError
from training.data.files import Source, read_source, refuse_bad_rows
from training.data.labels import text_problem
from training.data.splits import IntentRows, Problems

_COLUMNS = ("text", "label")


def read_intent_csv(path: Path) -> IntentRows:
    """Read the columns `text` and `label`; other columns and blank lines hold nothing. DataError names the bad rows.

    A label `nan`, which is how data frames write a label that is missing, is refused as an empty one is.
    """
    source = read_source(path)
    problems = Problems(source.file)
    texts: list[str] = []
    labels: list[str] = []
    reader = csv.reader((f"{line}\n" for line in source.lines), strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        text_column, label_column = _columns(source, header)
        for fields in reader:
            if not fields:
                continue
            problem = _problem(fields, header, text_column, label_column)
            if problem:
                problems.add(reader.line_num, problem)
            else:
                texts.append(fields[text_column])
                labels.append(fields[label_column].strip())
    except csv.Error as error:
        raise DataError(f"{source.file} must be CSV, line {reader.line_num} is not: {error}; correct it") from error
    refuse_bad_rows(problems, len(texts))
    return IntentRows(tuple(texts), tuple(labels), source.file, source.sha256)


def _columns(source: Source, header: Sequence[str]) -> list[int]:
    for name in _COLUMNS:
        if header.count(name) != 1:
            raise DataError(
                f"{source.file} must have one column {name}, its header is {', '.join(header)}; "
                f"name the columns {' and '.join(_COLUMNS)}"
            )
    return [header.index(name) for name in _COLUMNS]


def _problem(fields: Sequence[str], header: Sequence[str], text_column: int, label_column: int) -> str | None:
    if len(fields) != len(header):
        return f"a row must have {len(header)} fields as the header has, got {len(fields)}"
    label = fields[label_column]
    if label.strip().lower() == "nan":
        return f"label must not be NaN, got {label!r}"
    return text_problem("text", fields[text_column]) or text_problem("label", label)

"""Terms of a catalogue by type, as `model.gazetteer` names them: JSON Lines or CSV of {"type", "term"}."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError
from models.gazetteer import MAX_TYPES, Gazetteer
from training.data.files import Source, read_source, refuse_bad_rows
from training.data.jsonl import objects
from training.data.labels import text_problem
from training.data.splits import Problems

_COLUMNS = ("type", "term")

Rows = Callable[[Source, Problems], Iterator[tuple[int, object, object]]]
"""Gives line, type and term of every row that has both; what it cannot read goes to the problems."""


@dataclass(frozen=True)
class Terms:
    """A gazetteer and the file that it was read from."""

    gazetteer: Gazetteer
    file: str
    sha256: str

    def __len__(self) -> int:
        return sum(map(len, self.gazetteer.terms.values()))


def read_gazetteer(path: Path) -> Terms:
    """Read every (type, term); one that occurs twice counts once. DataError names the bad rows."""
    name = path.name.removesuffix(".gz")
    rows = next((rows for ending, rows in _ROWS.items() if name.endswith(ending)), None)
    if rows is None:
        raise DataError(f"a gazetteer must end in {' or '.join(_ROWS)} (or that with .gz), got {path.name}")
    return _read(path, rows)


def _read(path: Path, rows: Rows) -> Terms:
    source = read_source(path)
    problems = Problems(source.file)
    terms: dict[str, set[str]] = {}
    for line, kind, term in rows(source, problems):
        if problem := text_problem("type", kind) or text_problem("term", term):
            problems.add(line, problem)
        else:
            terms.setdefault(str(kind), set()).add(" ".join(str(term).split()))
    refuse_bad_rows(problems, len(terms))
    if len(terms) > MAX_TYPES:
        raise DataError(f"{source.file} must have at most {MAX_TYPES} types of terms, it has {len(terms)}; join some")
    return Terms(Gazetteer(terms), source.file, source.sha256)


def _jsonl(source: Source, problems: Problems) -> Iterator[tuple[int, object, object]]:
    for line, row in objects(source, _COLUMNS, problems):
        yield line, row["type"], row["term"]


def _csv(source: Source, problems: Problems) -> Iterator[tuple[int, object, object]]:
    reader = csv.DictReader((f"{line}\n" for line in source.lines), strict=True)
    try:
        if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
            raise DataError(f"{source.file} must have the columns type and term, it lacks {' and '.join(missing)}")
        for row in reader:
            if None in row or None in row.values():
                problems.add(
                    reader.line_num, f"a row must have {len(reader.fieldnames or ())} fields as the header has"
                )
            else:
                yield reader.line_num, row["type"], row["term"]
    except csv.Error as error:
        raise DataError(f"{source.file} must be CSV, line {reader.line_num} is not: {error}; correct it") from error


_ROWS: Mapping[str, Rows] = {".jsonl": _jsonl, ".csv": _csv}

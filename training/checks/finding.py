"""What a check of the data comes to: findings, each a sentence with a figure, some examples and perhaps a chart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

MAX_EXAMPLES = 10
"""Examples that a finding keeps."""
_MAX_CHARACTERS = 200
"""Of an example's text; a line of a megabyte must not become a page of a megabyte."""
_MAX_NAME = 60
"""Characters of a name in a sentence."""

Cell = str | int | float
Severity = Literal["note", "warning"]


@dataclass(frozen=True, slots=True)
class Chart:
    """Values by name, a series a split: `bars` lie (many long names), `columns` stand (neighbouring intervals).

    series: name -> one value for each of `names`. unit: what is counted.
    """

    title: str
    names: tuple[str, ...]
    series: Mapping[str, tuple[float, ...]]
    unit: str
    kind: Literal["bars", "columns"] = "bars"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a person should know: `rule` names its kind, `value` is its figure (a count, share or score).

    A warning calls for something to be done; a note is good to know. examples: rows of one table, at most MAX_EXAMPLES.
    """

    rule: str
    severity: Severity
    value: float
    sentence: str
    examples: tuple[Mapping[str, Cell], ...] = ()
    chart: Chart | None = None


def examples(rows: Sequence[Mapping[str, Cell]]) -> tuple[Mapping[str, Cell], ...]:
    """Give the first MAX_EXAMPLES rows, their texts cut to a length that a page can bear."""
    return tuple({name: _cut(cell) for name, cell in row.items()} for row in rows[:MAX_EXAMPLES])


def some(names: Collection[str], n: int = 5) -> str:
    """Give a few of many names for a sentence."""
    first = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in list(names)[:n]]
    return ", ".join(first) + (f" and {len(names) - n:,} more" if len(names) > n else "")


def count(n: int, noun: str) -> str:
    """Give a number with its noun: "1 row", "2,000 rows", "3 queries"."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun[:-1]}ies" if noun.endswith("y") else f"{n:,} {noun}s"


def verb(n: int, singular: str, plural: str) -> str:
    """Give the form of a verb that goes with a number."""
    return singular if n == 1 else plural


def percent(part: float, whole: float) -> str:
    """Give a share with one decimal; a share that is not 0 is never shown as 0."""
    share = 100 * part / whole if whole else 0.0
    return "below 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def _cut(cell: Cell) -> Cell:
    return f"{cell[:_MAX_CHARACTERS]}…" if isinstance(cell, str) and len(cell) > _MAX_CHARACTERS else cell

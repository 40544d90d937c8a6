"""Columns of numbers in JSON, read into a matrix without a Python object for each number.

msgspec finds where each column's text begins and ends, simdjson reads all of them as one array of doubles. What has
anything but numbers and nulls is left to msgspec, which says what is wrong with it.
Legend: D candidates, N features that were sent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import simdjson
from numpy.typing import NDArray

from models.errors import InputError
from serving.gateway import wire

_MOST_BYTES = 1 << 20
"""Longer columns are left to msgspec: the parser keeps what it once needed."""
_BEYOND = b"1e99"
"""Stands for null while it is read: as long, and nothing that a float32 holds."""


class TextColumns(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`wire.Columns` whose features are text still."""

    ids: list[str]
    texts: list[str | None] | None = None
    features: dict[str, msgspec.Raw] = {}


def check_names(body: bytes, columns: TextColumns | wire.Columns, query: wire.Query) -> None:
    """Refuse a request by column that names something twice: readers of JSON keep the last and say nothing; InputError.

    Every column is a list, so that a body with no more lists than columns is not looked at again.
    """
    n_known = 1 + (columns.texts is not None) + len(columns.features)
    n_found = _count(body, "[")
    if n_found == n_known:
        return
    texts = (*columns.ids, *filter(None, columns.texts or ()), *columns.features, query.text, *query.features)
    if n_found - sum(text.count("[") for text in texts) > n_known or b"\\u005" in body:  # a bracket in disguise
        json.loads(body, object_pairs_hook=_named_once)


def _named_once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise InputError(f"an object must have a name once, got {twice[:60]!r} twice; leave one out", field=twice)


class ColumnReader:
    """Reads the numbers of one request after the other; belongs to one thread."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser(max_capacity=_MOST_BYTES)

    def read(self, columns: Sequence[msgspec.Raw], n_rows: int) -> NDArray[np.float32]:
        """Read N columns of `n_rows` values into a matrix [N, D], null as NaN; ValueError for anything else.

        Equal to `msgspec`'s numbers as float32, bit by bit: both round a decimal to the nearest double.
        """
        texts = [bytes(column) for column in columns]
        if not n_rows or any(text[:1] != b"[" or text.count(b",") != n_rows - 1 for text in texts):
            raise ValueError(f"columns must be lists of {n_rows} values")
        text = b"[%b]" % b",".join([text[1:-1] for text in texts])
        if _count(text, "[") != 1:
            raise ValueError("columns must not have columns within")
        try:
            n_missing, text = _without_nulls(text)
            array = self._parser.parse(text)
            numbers = np.frombuffer(array.as_buffer(of_type="d"))  # type: ignore[union-attr]
        except (IndexError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError("columns must have numbers alone") from error
        with np.errstate(over="ignore"):
            matrix_ND = numbers.astype(np.float32).reshape(len(columns), n_rows)
        is_beyond_ND = np.isinf(matrix_ND)
        if np.count_nonzero(is_beyond_ND) != n_missing:
            raise ValueError("columns must fit into float32")
        if n_missing:
            np.copyto(matrix_ND, np.nan, where=is_beyond_ND)
        return matrix_ND


def may_have_nan(body: bytes) -> bool:
    """Whether an N stands two places before another: to look for three letters takes three times as long."""
    if b"N" not in body:
        return False
    is_n = np.frombuffer(body, np.uint8) == ord("N")
    return bool((is_n[:-2] & is_n[2:]).any())


def _count(text: bytes, letter: str) -> int:
    """`text.count`, in a third of its time where there are thousands of letters."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord(letter)))


def _without_nulls(text: bytes) -> tuple[int, bytes]:
    """How many nulls there are, and the text with `_BEYOND` in their place; a string stays none that is a number."""
    letters = np.frombuffer(text, np.uint8)
    starts = np.flatnonzero(letters == ord("n"))
    if not len(starts):
        return 0, text
    written = bytearray(text)
    letters = np.frombuffer(written, np.uint8)
    for place, letter in enumerate(_BEYOND):
        letters[starts + place] = letter
    return len(starts), bytes(written)

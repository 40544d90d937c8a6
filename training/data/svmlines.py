"""Lines of SVMrank text as columns: the part of `training.data.svmrank` that must be quick.

Where every line has the same features in the same order, which is how most files are written, Arrow's CSV parser reads
them; other lines are cut into tokens by numpy, and read as numbers by Arrow.
Shapes: N lines with a document, F features, T tokens of a chunk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

MAX_FEATURE = 100_000
"""Largest number of a feature: lists are dense matrices, and a slip like 4000000000:1 must not fill the memory."""

_DOC_ID = re.compile(r"docid\s*=\s*(\S+)")
_RARE_SPACES = (b"\t", b"\r", b"\v", b"\f")
_PLAIN_SPACES = bytes.maketrans(b"".join(_RARE_SPACES), b" " * len(_RARE_SPACES))
_COLONS_TO_SPACES = bytes.maketrans(b":", b" ")
_NO_SEPARATORS = bytes(set(range(256)) - set(b" :\n"))

T = TypeVar("T", np.int64, np.float32)

_TEXT, _SPACE, _COLON = 0, 1, 2
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[list(b" \t\r\n\v\f")] = _SPACE
_KINDS[ord(":")] = _COLON


class BadLineError(Exception):
    """A chunk holds a line that breaks the format; which one, and how, is found line by line."""


@dataclass(frozen=True, slots=True)
class Dense:
    """Values [N, F] of the features [F], by rows."""

    features: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sparse:
    """One value an entry [entries]: its row, its feature, its number."""

    rows: NDArray[np.int64]
    features: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The documents of some lines as columns [N]; `lines` says where each stands in its file, counted from 1."""

    lines: list[int]
    query_ids: list[str]
    doc_ids: list[str]
    labels: NDArray[np.float32]
    entries: Dense | Sparse


def parse(text: bytes, first_line: int) -> Chunk:
    """Read whole lines, each ended by a newline; BadLineError or ArrowInvalid where one breaks the format."""
    if not text.isascii():
        text.decode()
    comments: list[bytes] = []
    if b"#" in text:
        halves = [line.partition(b"#") for line in text.split(b"\n")]
        text, comments = b"\n".join([half[0] for half in halves]), [half[2] for half in halves]
    if any(space in text for space in _RARE_SPACES):
        text = text.translate(_PLAIN_SPACES)
    text = text.replace(b" \n", b"\n")
    return _parse_alike(text, comments, first_line) or _parse_tokens(text, comments, first_line)


def _parse_alike(text: bytes, comments: list[bytes], first_line: int) -> Chunk | None:
    """Read lines that all have the same features in the same order; None where they do not, or where one is bad."""
    n_lines, n_keys = text.count(b"\n"), text.count(b":", 0, text.find(b"\n"))
    if n_keys < 2 or text.translate(None, _NO_SEPARATORS) != (b" :" * n_keys + b"\n") * n_lines:
        return None
    try:
        table = _read_csv(text.translate(_COLONS_TO_SPACES), n_columns=2 * n_keys + 1)
    except pa.ArrowInvalid:
        return None
    columns = table.columns
    keys = [_numbers(column, np.dtype(np.int32)) for column in columns[3::2]]
    values = [_numbers(column, np.dtype(np.float32)) for column in columns[4::2]]
    features = np.array([key[0] for key in keys], dtype=np.int64)
    if (
        any((key != key[0]).any() for key in keys)
        or len(np.unique(features)) < len(features)
        or features.min() < 0
        or features.max() > MAX_FEATURE
        # Arrow reads 0x1 as a number.
        or b"x" in text
        or b"X" in text
        or set(columns[1].unique().to_pylist()) != {"qid"}
    ):
        return None
    return Chunk(
        list(range(first_line, first_line + n_lines)),
        columns[2].to_pylist(),
        _doc_ids(comments, range(n_lines), first_line),
        _numbers(columns[0], np.dtype(np.float32)),
        Dense(features, np.stack(values, axis=1)),
    )


def _read_csv(text: bytes, n_columns: int) -> pa.Table:
    """Every column as one array; ArrowInvalid where a field is empty or not of its column's type."""
    parsing, conversion = _csv_options(n_columns)
    names = [str(place) for place in range(n_columns)]
    reading = pa.csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=names)
    return pa.csv.read_csv(
        pa.BufferReader(text), read_options=reading, parse_options=parsing, convert_options=conversion
    )


def _numbers(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A column without nulls; to_numpy would import pandas, which takes a third of a second."""
    return np.frombuffer(column.chunk(0).buffers()[1], dtype=dtype, count=len(column))


@lru_cache(maxsize=8)
def _csv_options(n_columns: int) -> tuple[pa.csv.ParseOptions, pa.csv.ConvertOptions]:
    kinds = [pa.float32(), pa.utf8(), pa.utf8(), *[pa.int32(), pa.float32()] * ((n_columns - 3) // 2)]
    return (
        pa.csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
        pa.csv.ConvertOptions(
            column_types={str(place): kind for place, kind in enumerate(kinds)}, null_values=[], check_utf8=False
        ),
    )


def _parse_tokens(text: bytes, comments: list[bytes], first_line: int) -> Chunk:
    tokens = _Tokens(text)
    counts = tokens.count_by_line()
    lines = np.flatnonzero(counts)
    counts = counts[lines]
    positions_T = np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_key_T = positions_T % 2 == 1
    # label, "qid", ID, then pairs: an odd number, every second one before a colon.
    if np.any(counts < 3) or np.any(counts % 2 == 0) or not tokens.are_keys(is_key_T):
        raise BadLineError
    if any(word != b"qid" for word in tokens.words(positions_T == 1)):
        raise BadLineError
    is_feature_T = is_key_T & (positions_T > 1)
    if (b"x" in text or b"X" in text) and not all(word.isdigit() for word in tokens.words(is_feature_T)):
        raise BadLineError
    features = tokens.numbers(is_feature_T, pa.int64(), np.int64)
    if np.any(features < 0) or np.any(features > MAX_FEATURE):
        raise BadLineError
    rows = np.repeat(np.arange(len(lines)), (counts - 3) // 2)
    if _has_duplicates(rows * (MAX_FEATURE + 1) + features):
        raise BadLineError
    values = tokens.numbers(~is_key_T & (positions_T > 2), pa.float32(), np.float32)
    return Chunk(
        (lines + first_line).tolist(),
        [word.decode() for word in tokens.words(positions_T == 2)],
        _doc_ids(comments, lines.tolist(), first_line),
        tokens.numbers(positions_T == 0, pa.float32(), np.float32),
        Sparse(rows, features, values),
    )


class _Tokens:
    """Whatever stands between whitespace and colons, T times, as positions in the text (which ends in a newline)."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._kinds = _KINDS[np.frombuffer(text, dtype=np.uint8)]
        is_text = self._kinds == _TEXT
        edges = np.flatnonzero(is_text[1:] != is_text[:-1]) + 1
        if is_text[0]:
            edges = np.concatenate([[0], edges])
        # Starts and ends by turns.
        self._edges = edges.astype(np.int32)
        self._starts, self._ends = self._edges[0::2], self._edges[1::2]

    def __len__(self) -> int:
        return len(self._starts)

    def count_by_line(self) -> NDArray[np.int64]:
        newlines = np.flatnonzero(np.frombuffer(self._text, dtype=np.uint8) == ord("\n"))
        return np.diff(np.searchsorted(self._starts, newlines), prepend=0)

    def are_keys(self, is_key_T: NDArray[np.bool_]) -> bool:
        """Whether a colon, and nothing else, stands between each of these tokens and the next, and no other colon."""
        if np.count_nonzero(self._kinds == _COLON) != np.count_nonzero(is_key_T):
            return False
        keys = np.flatnonzero(is_key_T)
        ends = self._ends[keys]
        return bool(np.all(self._kinds[ends] == _COLON) and np.all(self._starts[keys + 1] == ends + 1))

    def words(self, mask_T: NDArray[np.bool_]) -> list[bytes]:
        spans = zip(self._starts[mask_T].tolist(), self._ends[mask_T].tolist(), strict=True)
        return [self._text[start:end] for start, end in spans]

    def numbers(self, mask_T: NDArray[np.bool_], kind: pa.DataType, dtype: type[T]) -> NDArray[T]:
        """The tokens under the mask as numbers; ArrowInvalid where one is not.

        Arrow is given every token and every gap as a string, without a copy, and all but those asked for as null.
        """
        if not mask_T.any():
            return np.empty(0, dtype=dtype)
        is_asked = np.zeros(len(self._edges) - 1, dtype=np.bool_)
        is_asked[0::2] = mask_T
        buffers = [
            pa.py_buffer(np.packbits(is_asked, bitorder="little")),
            pa.py_buffer(self._edges),
            pa.py_buffer(self._text),
        ]
        cast = pa.Array.from_buffers(pa.utf8(), len(is_asked), buffers).cast(kind)
        return np.frombuffer(cast.buffers()[1], dtype=dtype)[: len(is_asked) : 2][mask_T]


def _has_duplicates(keys: NDArray[np.int64]) -> bool:
    return not np.all(np.diff(keys) > 0) and len(np.unique(keys)) < len(keys)


def _doc_ids(comments: list[bytes], lines: range | list[int], first_line: int) -> list[str]:
    if not comments:
        return [f"line {line + first_line}" for line in lines]
    return [_doc_id(comments[line], line + first_line) for line in lines]


def _doc_id(comment: bytes, line: int) -> str:
    text = comment.decode()
    found = _DOC_ID.search(text)
    if found:
        return found[1]
    words = text.split(maxsplit=1)
    return words[0] if words else f"line {line}"

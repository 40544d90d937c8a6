"""SVMrank (LETOR) text: `relevance qid:ID feature:value ... # comment`, a document a line.

Files of this format have millions of lines, so they are cut into tokens by numpy and read as numbers by Arrow, a chunk
at a time; only a file with a mistake is read again line by line, to say which lines are bad and why.
Shapes: N lines with a document, F features, T tokens of a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.data.files import digest, read_bytes, read_source, refuse_bad_rows
from training.data.lists import Documents, label_problem, to_rows
from training.data.splits import Problems, RankingRows

MAX_FEATURE = 100_000
"""Largest number of a feature: lists are dense matrices, and a slip like 4000000000:1 must not fill the memory."""

_CHUNK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_DOC_ID = re.compile(r"docid\s*=\s*(\S+)")

_NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*([eE][+-]?[0-9]+)?|\.[0-9]+([eE][+-]?[0-9]+)?|nan|inf(inity)?)", re.IGNORECASE
)

T = TypeVar("T", np.int64, np.float32)

_TEXT, _SPACE, _COLON = 0, 1, 2
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[list(b" \t\r\n\v\f")] = _SPACE
_KINDS[ord(":")] = _COLON


class _BadLineError(Exception):
    """A chunk holds a line that breaks the format; which one, and how, is found line by line."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The documents of some lines as columns [documents], and their features as columns [entries]."""

    lines: list[int]
    query_ids: list[str]
    doc_ids: list[str]
    labels: NDArray[np.float32]
    entry_rows: NDArray[np.int64]
    entry_features: NDArray[np.int64]
    entry_values: NDArray[np.float32]


def read_svmrank(path: Path) -> RankingRows:
    """Read a file; lines of one query need not follow each other, blank ones and those of comments hold nothing.

    A feature is named by its number ("1"); one that a line leaves out, or gives as nan, is missing (NaN), never 0. A
    document's id is that of `# docid = ID` (LETOR), else the first word of the comment, else "line N". DataError names
    the bad lines.
    """
    content = read_bytes(path)
    sha256, problems = digest(content), Problems(path.name)
    try:
        documents = _read(content.removeprefix(_BOM))
    except UnicodeDecodeError:
        read_source(path)  # which says where
        raise
    except (_BadLineError, pa.ArrowInvalid) as error:
        refuse_bad_rows(_bad_lines(path), n_rows=0)
        raise AssertionError(f"{path} was refused, and no line of it") from error
    del content
    return to_rows(documents, problems, sha256)


class _Matrix:
    """Features [N, F] that grow by a column when a chunk brings a new one."""

    def __init__(self, n_rows: int) -> None:
        self._values_NF = np.empty((n_rows, 0), dtype=np.float32)
        self._place_of_feature = np.full(MAX_FEATURE + 1, -1)
        self._features = np.empty(0, dtype=np.int64)
        self._n_filled = 0

    def append(self, chunk: _Chunk) -> None:
        present = np.flatnonzero(np.bincount(chunk.entry_features, minlength=MAX_FEATURE + 1))
        new = present[self._place_of_feature[present] < 0]
        if len(new):
            self._place_of_feature[new] = len(self._features) + np.arange(len(new))
            self._features = np.concatenate([self._features, new])
            wider_NF = np.full((len(self._values_NF), len(self._features)), np.nan, dtype=np.float32)
            wider_NF[:, : self._values_NF.shape[1]] = self._values_NF
            self._values_NF = wider_NF
        rows, columns = chunk.entry_rows + self._n_filled, self._place_of_feature[chunk.entry_features]
        self._values_NF[rows, columns] = chunk.entry_values
        self._n_filled += len(chunk.lines)

    def finish(self) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """Features of the rows appended, columns by rising number, and their names."""
        order = np.argsort(self._features)
        values_NF = self._values_NF[: self._n_filled]
        if np.any(np.diff(order) != 1):
            values_NF = values_NF[:, order]
        return values_NF, tuple(str(feature) for feature in self._features[order].tolist())


def _read(content: bytes) -> Documents:
    matrix = _Matrix(content.count(b"\n") + 1)
    lines: list[int] = []
    query_ids: list[str] = []
    doc_ids: list[str] = []
    labels = [np.empty(0, dtype=np.float32)]
    # Queries have many documents: one string each.
    known: dict[str, str] = {}
    for first_line, text in _chunks(content):
        chunk = _parse(text, first_line)
        matrix.append(chunk)
        lines += chunk.lines
        query_ids += [known.setdefault(query_id, query_id) for query_id in chunk.query_ids]
        doc_ids += chunk.doc_ids
        labels.append(chunk.labels)
    features_NF, names = matrix.finish()
    return Documents(query_ids, doc_ids, np.concatenate(labels), features_NF, names, lines)


def _chunks(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Whole lines, about _CHUNK_BYTES at a time and ended by a newline, with the number of the first one."""
    start, line = 0, 1
    while start < len(content):
        end = content.find(b"\n", start + _CHUNK_BYTES) + 1 or len(content)
        text = content[start:end]
        text.decode()
        yield line, text if text.endswith(b"\n") else text + b"\n"
        line += text.count(b"\n")
        start = end


def _parse(text: bytes, first_line: int) -> _Chunk:
    """Read a chunk; _BadLineError or ArrowInvalid where a line breaks the format."""
    comments: list[bytes] = []
    if b"#" in text:
        halves = [line.partition(b"#") for line in text.split(b"\n")]
        text, comments = b"\n".join([half[0] for half in halves]), [half[2] for half in halves]
    tokens = _Tokens(text)
    counts = tokens.count_by_line()
    lines = np.flatnonzero(counts)
    counts = counts[lines]
    positions_T = np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_key_T = positions_T % 2 == 1
    # label, "qid", ID, then pairs: an odd number, every second one before a colon.
    if np.any(counts < 3) or np.any(counts % 2 == 0) or not tokens.are_keys(is_key_T):
        raise _BadLineError
    if any(word != b"qid" for word in tokens.words(positions_T == 1)):
        raise _BadLineError
    features = tokens.numbers(is_key_T & (positions_T > 1), pa.int64(), np.int64)
    if np.any(features < 0) or np.any(features > MAX_FEATURE):
        raise _BadLineError
    rows = np.repeat(np.arange(len(lines)), (counts - 3) // 2)
    if _has_duplicates(rows * (MAX_FEATURE + 1) + features):
        raise _BadLineError
    numbers = [line + first_line for line in lines.tolist()]
    ids = (
        [_doc_id(comments[line], number) for line, number in zip(lines.tolist(), numbers, strict=True)]
        if comments
        else [f"line {number}" for number in numbers]
    )
    return _Chunk(
        numbers,
        [word.decode() for word in tokens.words(positions_T == 2)],
        ids,
        tokens.numbers(positions_T == 0, pa.float32(), np.float32),
        rows,
        features,
        tokens.numbers(~is_key_T & (positions_T > 2), pa.float32(), np.float32),
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


def _doc_id(comment: bytes, line: int) -> str:
    text = comment.decode()
    found = _DOC_ID.search(text)
    if found:
        return found[1]
    words = text.split(maxsplit=1)
    return words[0] if words else f"line {line}"


def _bad_lines(path: Path) -> Problems:
    """Read line by line to find what is wrong where."""
    source = read_source(path)
    problems = Problems(source.file)
    for number, line in enumerate(source.lines, start=1):
        words = re.sub(r"[ \t\r\n\v\f]+", " ", line.partition("#")[0]).split(" ")
        words = [word for word in words if word]
        if words and (problem := _line_problem(words)):
            problems.add(number, problem)
    return problems


def _line_problem(words: list[str]) -> str | None:
    label, query, pairs = words[0], words[1] if len(words) > 1 else "", words[2:]
    if not _is_number(label):
        return f"a line must begin with a relevance label, got {label!r}"
    if problem := label_problem(float(label)):
        return problem
    if not re.fullmatch(r"qid:[^:]+", query):
        return f"the relevance must be followed by qid:ID, got {query!r}"
    seen: set[int] = set()
    for pair in pairs:
        feature, colon, value = pair.partition(":")
        if not colon or not re.fullmatch(r"[0-9]+", feature) or not _is_number(value):
            return f"a feature must be NUMBER:VALUE, got {pair!r}"
        if int(feature) > MAX_FEATURE:
            return f"a feature's number must be at most {MAX_FEATURE}, got {feature}"
        if int(feature) in seen:
            return f"a feature must be once in a line, {feature} is there twice"
        seen.add(int(feature))
    return None


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None

"""SVMrank (LETOR) text: `relevance qid:ID feature:value ... # comment`, a document a line.

Files of this format have millions of lines, so they are read a chunk at a time, on as many threads as there are cores,
straight into the matrix; only a file with a mistake is read again line by line, to say which lines are bad and why.
Shapes: N lines with a document, F features.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.data.files import read_blocks, read_source, refuse_bad_rows
from training.data.lists import Documents, label_problem, to_rows
from training.data.splits import Problems, RankingRows
from training.data.svmlines import MAX_FEATURE, BadLineError, Chunk, Dense, parse

_CHUNK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"

_NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*([eE][+-]?[0-9]+)?|\.[0-9]+([eE][+-]?[0-9]+)?|nan|inf(inity)?)", re.IGNORECASE
)


def read_svmrank(path: Path) -> RankingRows:
    """Read a file; lines of one query need not follow each other, blank ones and those of comments hold nothing.

    A feature is named by its number ("1"); one that a line leaves out, or gives as nan, is missing (NaN), never 0. A
    document's id is that of `# docid = ID` (LETOR), else the first word of the comment, else "line N". DataError names
    the bad lines.
    """
    sha256, problems = hashlib.sha256(), Problems(path.name)
    try:
        documents = _read(path, sha256)
    except UnicodeDecodeError:
        read_source(path)  # which says where
        raise
    except (BadLineError, pa.ArrowInvalid) as error:
        refuse_bad_rows(_bad_lines(path), n_rows=0)
        raise AssertionError(f"{path} was refused, and no line of it") from error
    return to_rows(documents, problems, sha256.hexdigest())


class _Matrix:
    """Features [N, F] that grow by rows, and by a column when a chunk brings a new feature.

    Rows that nothing was written to yet take no memory: the system gives it at the first write.
    """

    def __init__(self) -> None:
        self._values_NF = np.empty((0, 0), dtype=np.float32)
        self._place_of_feature = np.full(MAX_FEATURE + 1, -1)
        self._features = np.empty(0, dtype=np.int64)
        self._n_filled = 0

    def append(self, chunk: Chunk, n_expected: int) -> None:
        """Add the rows of a chunk; n_expected: rows that the file seems to have, to make room for them at once."""
        entries = chunk.entries
        present = np.unique(entries.features)
        new = present[self._place_of_feature[present] < 0]
        self._make_room(len(chunk.lines), new, n_expected)
        here = slice(self._n_filled, self._n_filled + len(chunk.lines))
        places = self._place_of_feature[entries.features]
        if isinstance(entries, Dense) and np.array_equal(places, np.arange(len(self._features))):
            self._values_NF[here] = entries.values
        else:
            self._values_NF[here] = np.nan
            if isinstance(entries, Dense):
                self._values_NF[here, places] = entries.values
            else:
                self._values_NF[entries.rows + self._n_filled, places] = entries.values
        self._n_filled = here.stop

    def _make_room(self, n_rows: int, new: NDArray[np.int64], n_expected: int) -> None:
        n_wanted = self._n_filled + n_rows
        if not len(new) and n_wanted <= len(self._values_NF):
            return
        self._place_of_feature[new] = len(self._features) + np.arange(len(new))
        self._features = np.concatenate([self._features, new])
        n_rows = len(self._values_NF)
        if n_wanted > n_rows:
            n_rows = max(n_wanted, n_expected, n_rows + n_rows // 2)
        old_NF = self._values_NF[: self._n_filled]
        self._values_NF = np.empty((n_rows, len(self._features)), dtype=np.float32)
        self._values_NF[: len(old_NF), : old_NF.shape[1]] = old_NF
        self._values_NF[: len(old_NF), old_NF.shape[1] :] = np.nan

    def finish(self) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """Features of the rows appended, columns by rising number, and their names."""
        order = np.argsort(self._features)
        values_NF = self._values_NF[: self._n_filled]
        if np.any(np.diff(order) != 1):
            values_NF = values_NF[:, order]
        return values_NF, tuple(str(feature) for feature in self._features[order].tolist())


def _read(path: Path, sha256: hashlib._Hash) -> Documents:
    matrix = _Matrix()
    lines: list[int] = []
    query_ids: list[str] = []
    doc_ids: list[str] = []
    labels = [np.empty(0, dtype=np.float32)]
    # Queries have many documents: one string each.
    known: dict[str, str] = {}
    n_bytes, n_bytes_read = path.stat().st_size, 0
    for chunk_bytes, chunk in _parsed(_chunks(path, sha256)):
        n_bytes_read += chunk_bytes
        lines += chunk.lines
        query_ids += [known.setdefault(query_id, query_id) for query_id in chunk.query_ids]
        doc_ids += chunk.doc_ids
        labels.append(chunk.labels)
        matrix.append(chunk, n_expected=int(1.02 * len(lines) * n_bytes / n_bytes_read))
    features_NF, names = matrix.finish()
    return Documents(query_ids, doc_ids, np.concatenate(labels), features_NF, names, lines)


def _parsed(chunks: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, Chunk]]:
    """Parse chunks on all cores, in order and with few of them in memory; Arrow lets other threads run."""
    n_threads = os.cpu_count() or 1
    waiting: deque[tuple[int, Future[Chunk]]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        for first_line, text in chunks:
            waiting.append((len(text), pool.submit(parse, text, first_line)))
            if len(waiting) > 2 * n_threads:
                n_bytes, future = waiting.popleft()
                yield n_bytes, future.result()
        for n_bytes, future in waiting:
            yield n_bytes, future.result()


def _chunks(path: Path, sha256: hashlib._Hash) -> Iterator[tuple[int, bytes]]:
    """Whole lines, about _CHUNK_BYTES at a time and ended by a newline, with the number of the first one."""
    line, rest = 1, b""
    for block in read_blocks(path, _CHUNK_BYTES):
        sha256.update(block)
        after_newline = block.rfind(b"\n") + 1
        if not after_newline:
            rest += block
            continue
        text, rest = rest + block[:after_newline], block[after_newline:]
        yield line, text if line > 1 else text.removeprefix(_BOM)
        line += text.count(b"\n")
    if rest:
        yield line, (rest if line > 1 else rest.removeprefix(_BOM)) + b"\n"


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

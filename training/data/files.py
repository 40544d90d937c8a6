"""The files of a data directory: which split is where, their text, and a valid part held out where there is none."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from training.data.splits import Problems, R, Splits

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {"train": ("train",), "valid": ("valid", "vali"), "test": ("test",)}

HELD_OUT_EVERY = 10
"""One group in so many of `train` becomes `valid` where there is no such file."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file's text: lines without their ends (line n is `lines[n - 1]`) and the sha256 of its decompressed content."""

    file: str
    lines: tuple[str, ...]
    sha256: str


def find_splits(directory: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Find train, valid (or vali) and test with one of `endings` (`.jsonl`), or that and `.gz`.

    Only `train` must be there. DataError: no such directory, no train file, two files for one split.
    """
    if not directory.is_dir():
        raise DataError(f"a data directory must exist, got {directory}; name another one with --data")
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        candidates = [directory / f"{name}{ending}{gz}" for name in names for ending in endings for gz in ("", ".gz")]
        files = [path for path in candidates if path.is_file()]
        if len(files) > 1:
            raise DataError(
                f"a split must be one file, got {' and '.join(path.name for path in files)} in {directory}; "
                "move all but one away"
            )
        if files:
            found[split] = files[0]
    if "train" not in found:
        there = ", ".join(sorted(path.name for path in directory.iterdir())[:8]) or "nothing"
        raise DataError(
            f"a data directory must hold {' or '.join(f'train{ending}' for ending in endings)} (or that with .gz), "
            f"{directory} holds {there}"
        )
    return found


def read_bytes(path: Path) -> bytes:
    """Give a file's content, decompressed where it ends in `.gz`; DataError where it cannot be read or is empty."""
    return b"".join(read_blocks(path, -1))


def read_blocks(path: Path, n_bytes: int) -> Iterator[bytes]:
    """Give a file's content as `read_bytes` does, `n_bytes` at a time (-1: all at once)."""
    is_empty = True
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(n_bytes):
                is_empty = is_empty and not block.strip()
                yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} must be whole gzip data, got: {error}; compress it again") from error
    except OSError as error:
        raise DataError(f"{path} must be readable, got: {error.strerror}") from error
    if is_empty:
        raise DataError(f"{path.name} must have at least one row, it is empty")


def read_source(path: Path) -> Source:
    """Read a text file; DataError as `read_bytes`, and where it is not UTF-8. A byte order mark is left out."""
    content = read_bytes(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{path.name} must be UTF-8, line {line} has 0x{content[error.start]:02x} as its byte {column}; "
            "save it as UTF-8"
        ) from error
    # Not splitlines: it also splits at U+2028 and form feeds, which JSON strings may hold.
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    return Source(path.name, tuple(lines), digest(content))


def digest(content: bytes) -> str:
    """Give the sha256 of a file's content, as the rows of a split carry it."""
    return hashlib.sha256(content).hexdigest()


def refuse_bad_rows(problems: Problems, n_rows: int) -> None:
    """Raise DataError where a file has bad rows, naming the first ones and how many there are, or no row at all."""
    if problems.total:
        more = problems.total - len(problems.found)
        raise DataError(
            f"{problems.file} has {problems.total} bad row{'s'[: problems.total > 1]}: {'; '.join(problems.found)}"
            f"{f'; and {more} more' if more else ''}; correct {'them' if problems.total > 1 else 'it'}"
        )
    if not n_rows:
        raise DataError(f"{problems.file} must have at least one row, it has none")


def read_splits(
    directory: Path,
    readers: Mapping[str, Callable[[Path], R]],
    *,
    seed: int,
    groups: Callable[[R], Sequence[str]],
    strata: Callable[[R], Sequence[str]] | None = None,
    every: int = HELD_OUT_EVERY,
) -> Splits[R]:
    """Read every split by the reader of its ending; without a valid file hold out a part of train and say so.

    groups, strata: what `hold_out` needs of the training rows.
    """
    paths = find_splits(directory, tuple(readers))
    rows = {split: read_file(path, readers) for split, path in paths.items()}
    train = rows["train"]
    if "valid" in rows:
        return Splits(train, rows["valid"], rows.get("test"))
    kept, held = hold_out(groups(train), seed, strata(train) if strata else None, every)
    if not len(held):
        raise DataError(f"{train.file} is too small to hold out a part of it as valid; add a valid file")
    note = (
        f"no valid file: {len(held)} of the {len(train)} examples of {train.file} are held out as valid (seed {seed})"
    )
    return Splits(cast("R", train.take(kept)), cast("R", train.take(held)), rows.get("test"), (note,))


def read_file(path: Path, readers: Mapping[str, Callable[[Path], R]]) -> R:
    """Read one file by the reader of its ending; DataError where there is none for it."""
    name = path.name.removesuffix(".gz")
    for ending, reader in readers.items():
        if name.endswith(ending):
            return reader(path)
    raise DataError(f"a data file must end in {' or '.join(readers)} (or that with .gz), got {path.name}")


def hold_out(
    groups: Sequence[str], seed: int, strata: Sequence[str] | None = None, every: int = HELD_OUT_EVERY
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose about one in `every` rows: sorted indices of the rows kept and of those held out.

    Rows of one group (a query, a text that occurs twice) stay together. Every stratum (a label, taken from a group's
    first row) gives its part: groups in random order within their stratum, then one in `every` along all strata.
    A stratum's only group is never held out. With a single group nothing is.
    """
    generator = np.random.default_rng(seed)
    first_rows: dict[str, int] = {}
    for row, group in enumerate(groups):
        first_rows.setdefault(group, row)
    members: dict[str, list[str]] = {}
    for group, row in first_rows.items():
        members.setdefault(strata[row] if strata else "", []).append(group)
    order: list[str] = []
    for stratum in sorted(members):
        if len(members[stratum]) > 1:
            order.extend(members[stratum][index] for index in generator.permutation(len(members[stratum])))
    start = int(generator.integers(min(every, len(order)))) if order else 0
    chosen = set(order[start::every])
    is_held = np.array([group in chosen for group in groups], dtype=np.bool_)
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)

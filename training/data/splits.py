"""What the readers give: the rows of one split as columns, and the three splits of a data directory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.ranking import RankRequest

Request = str | RankRequest


class Read(Protocol):
    """What one file gave."""

    @property
    def file(self) -> str:
        """Name of the file that was read."""

    @property
    def sha256(self) -> str:
        """Of the file's content."""

    def __len__(self) -> int:
        """Number of examples (texts, or queries with their lists), or of whatever else the file holds."""


class Rows(Read, Protocol):
    """One split of any family."""

    def requests(self) -> Sequence[Request]:
        """What a user would have sent, an example each."""

    def take(self, indices: NDArray[np.int64]) -> Rows:
        """The examples at `indices`, in that order."""


R = TypeVar("R", bound=Rows)


@dataclass(frozen=True)
class UnlabelledTexts:
    """Texts [N] and nothing else."""

    texts: tuple[str, ...]
    file: str = ""
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Splits(Generic[R]):
    """A data directory: `test` is None where it has no such file; `notes` says what a reader counted or held out.

    unlabelled: texts for a teacher to label, where a configuration names such a file.
    """

    train: R
    valid: R
    test: R | None
    notes: tuple[str, ...] = ()
    unlabelled: UnlabelledTexts | None = None

    def named(self) -> dict[str, R]:
        """Split name -> rows, for the splits that exist."""
        return {
            name: rows
            for name, rows in (("train", self.train), ("valid", self.valid), ("test", self.test))
            if rows is not None
        }

    def sources(self) -> Mapping[str, Read]:
        """All that was read, by what it is for: the splits, and whatever a family reads besides."""
        return self.named() if self.unlabelled is None else {**self.named(), "unlabelled": self.unlabelled}


@dataclass(frozen=True)
class IntentRows:
    """Texts [N] and their labels [N].

    label_sets [N]: of rows with a list of labels; `labels` then holds each list as one text (`joined_labels`).
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    file: str = ""
    sha256: str = ""
    label_sets: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def requests(self) -> Sequence[str]:
        """The texts."""
        return self.texts

    def take(self, indices: NDArray[np.int64]) -> IntentRows:
        """The rows at `indices`."""
        return IntentRows(
            tuple(self.texts[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            self.file,
            self.sha256,
            None if self.label_sets is None else tuple(self.label_sets[i] for i in indices),
        )

    def sets(self) -> tuple[tuple[str, ...], ...]:
        """Labels of every row [N]; one each where rows have no lists."""
        return self.label_sets if self.label_sets is not None else tuple((label,) for label in self.labels)

    def each_label(self) -> tuple[str, ...]:
        """Labels of all rows, one after another."""
        return tuple(label for labels in self.sets() for label in labels)


@dataclass(frozen=True)
class TaggingRows:
    """Tokens and BIO tags, [N] tuples of equal length; labels [N] makes the rows joint with intent."""

    tokens: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...] | None = None
    file: str = ""
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def requests(self) -> Sequence[str]:
        """The tokens joined by one space: the text a user would have typed."""
        return [" ".join(tokens) for tokens in self.tokens]

    def take(self, indices: NDArray[np.int64]) -> TaggingRows:
        """The rows at `indices`."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        return TaggingRows(
            tuple(self.tokens[i] for i in indices), tuple(self.tags[i] for i in indices), labels, self.file, self.sha256
        )

    def joined(self, other: TaggingRows) -> TaggingRows:
        """These rows, and behind them the other ones."""
        labels = None if self.labels is None or other.labels is None else (*self.labels, *other.labels)
        return replace(self, tokens=(*self.tokens, *other.tokens), tags=(*self.tags, *other.tags), labels=labels)


@dataclass(frozen=True)
class Impressions:
    """What a click log shows of one list, all [I]: documents by their places, positions from 1, clicks 0 or 1."""

    documents: NDArray[np.int64]
    positions: NDArray[np.int64]
    clicked: NDArray[np.float64]


@dataclass(frozen=True)
class RankingRows:
    """Q candidate lists; relevance labels are integers from 0.

    query_ids [Q]; `lists` [Q] requests as a gateway would get them; `labels` [Q] arrays [documents of the list].
    """

    query_ids: tuple[str, ...]
    lists: tuple[RankRequest, ...]
    labels: tuple[NDArray[np.float32], ...]
    feature_names: tuple[str, ...] = ()
    """Numeric features that the rows carry, in order."""
    file: str = ""
    sha256: str = ""
    clicks: tuple[Impressions, ...] | None = None
    """Impressions of each list [Q] where the file is a click log: its labels come from clicks, and are no integers."""
    propensities: tuple[float, ...] | None = None
    """Chances that a position is looked at, by which the labels came from the clicks."""

    def __len__(self) -> int:
        return len(self.lists)

    def requests(self) -> Sequence[RankRequest]:
        """The lists."""
        return self.lists

    def take(self, indices: NDArray[np.int64]) -> RankingRows:
        """The queries at `indices`."""
        return replace(
            self,
            query_ids=tuple(self.query_ids[i] for i in indices),
            lists=tuple(self.lists[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            clicks=None if self.clicks is None else tuple(self.clicks[i] for i in indices),
        )


@dataclass
class Problems:
    """Bad rows of one file, gathered so that the first few and their number can be said at once."""

    file: str
    found: list[str] = field(default_factory=list)
    total: int = 0
    unit: str = "line"
    """What `add` counts from 1; "row" where a file has no lines."""

    def add(self, line: int, rule: str) -> None:
        """Note that `line` (from 1) breaks `rule`."""
        self.total += 1
        if len(self.found) < 3:
            self.found.append(f"{self.unit} {line}: {rule}")


def example_id(text: str) -> bytes:
    """16 bytes that name an example by its content, so that two models' answers to it can be paired."""
    return hashlib.sha256(text.encode()).digest()[:16]

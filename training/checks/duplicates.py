"""Texts that stand twice: within train, in two splits, and with answers that contradict each other.

Two texts are the same where a model reads them alike (Unicode form, case and spaces apart), and near duplicates where
they differ in accents, punctuation, word boundaries or plurals at most.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from models.lexical import read
from models.tagging import OUTSIDE
from training.checks.finding import Cell, Finding, count, examples, percent, verb
from training.data.splits import IntentRows, TaggingRows

Texts = IntentRows | TaggingRows

_FEW = 0.01
"""Share of a split below which near duplicates alone are a note."""


def duplicates(named: Mapping[str, Texts]) -> list[Finding]:
    """Find texts in two splits, texts twice in train, and texts that are the same while their answers are not."""
    splits = {name: _Split(name, rows) for name, rows in named.items()}
    found = [
        finding
        for later, earlier in (("valid", "train"), ("test", "train"), ("test", "valid"))
        if later in splits and earlier in splits
        for finding in _across(splits[earlier], splits[later])
    ]
    return [*found, *_within(splits["train"]), *_contradictions(list(splits.values()))]


def normal(text: str) -> str:
    """Give the form in which a model reads a text: NFKC, casefold, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def near(text: str) -> str:
    """Give the letters of a text's terms, run together; a text without letters and digits stands for itself."""
    return "".join(read(text).terms) or normal(text)


@dataclass(frozen=True)
class _Split:
    """A split's texts with the keys by which they are the same, and the answer of each row."""

    name: str
    rows: Texts

    @cached_property
    def texts(self) -> Sequence[str]:
        return self.rows.requests()

    @cached_property
    def same(self) -> list[str]:
        return [normal(text) for text in self.texts]

    @cached_property
    def alike(self) -> list[str]:
        return [near(text) for text in self.texts]

    def answer(self, row: int) -> tuple[str, ...]:
        """Label and tags other than O: what two rows of one text must agree on."""
        label = () if self.rows.labels is None else (self.rows.labels[row],)
        if isinstance(self.rows, IntentRows):
            return label
        return (*label, *[tag for tag in self.rows.tags[row] if tag != OUTSIDE])

    def shown(self, row: int) -> str:
        label = [] if self.rows.labels is None else [self.rows.labels[row]]
        if isinstance(self.rows, IntentRows):
            return label[0]
        tokens = zip(self.rows.tokens[row], self.rows.tags[row], strict=True)
        return " ".join([*label, *[f"{token}[{tag}]" for token, tag in tokens if tag != OUTSIDE]]) or OUTSIDE


def _across(earlier: _Split, later: _Split) -> list[Finding]:
    first_same, first_alike = _first_rows(earlier.same), _first_rows(earlier.alike)
    exact = {row: first_same[key] for row, key in enumerate(later.same) if key in first_same}
    close = {row: first_alike[key] for row, key in enumerate(later.alike) if row not in exact and key in first_alike}
    if not exact and not close:
        return []
    rows: list[dict[str, Cell]] = [
        {
            f"text in {later.name}": later.texts[here],
            "row": here + 1,
            "answer": later.shown(here),
            f"answer in {earlier.name}": "the same"
            if later.answer(here) == earlier.answer(there)
            else earlier.shown(there),
            "also": f"{earlier.name} row {there + 1}" + ("" if here in exact else f": {earlier.texts[there]}"),
        }
        for here, there in (exact | close).items()
    ]
    n_rows = len(later.texts)
    said = f"of the {n_rows:,} {later.name} texts"
    if exact:
        said = f"{len(exact):,} {said} ({percent(len(exact), n_rows)}) {verb(len(exact), 'stands', 'stand')}"
        said += f" in {earlier.name} too" + (f", and {len(close):,} more nearly so" if close else "")
    else:
        said = f"{len(close):,} {said} ({percent(len(close), n_rows)}) {verb(len(close), 'stands', 'stand')}"
        said += f" in {earlier.name} in nearly the same words"
    sentence = f"{said}: what is measured on them is memory; take them out of one split"
    is_grave = exact or len(close) > n_rows * _FEW
    rule = f"duplicates_{earlier.name}_{later.name}"
    return [
        Finding(rule, "warning" if is_grave else "note", len(exact) + len(close), sentence, examples(rows)),
    ]


def _within(train: _Split) -> list[Finding]:
    n_rows = len(train.texts)
    n_exact, n_alike = n_rows - len(set(train.same)), n_rows - len(set(train.alike))
    if not n_alike:
        return []
    groups = sorted(_groups(train.alike).values(), key=lambda members: (-len(members), members[0]))
    rows: list[dict[str, Cell]] = [
        {
            "text": train.texts[members[0]],
            "times": len(members),
            "forms": len({train.same[row] for row in members}),
            "answers": len({train.answer(row) for row in members}),
        }
        for members in groups
        if len(members) > 1
    ]
    sentence = (
        f"{n_exact:,} of the {n_rows:,} train rows ({percent(n_exact, n_rows)}) repeat the text of an earlier one, and "
        f"{n_alike - n_exact:,} more nearly so: each copy counts as a row; keep one where that is not meant"
    )
    return [Finding("duplicates_train", "note", n_alike, sentence, examples(rows))]


_Place = tuple[_Split, int]


def _contradictions(splits: Sequence[_Split]) -> list[Finding]:
    exact = _disagreeing((key, (split, row)) for split in splits for row, key in enumerate(split.same))
    known = {split.alike[row] for places in exact for split, row in places}
    close = _disagreeing(
        (key, (split, row)) for split in splits for row, key in enumerate(split.alike) if key not in known
    )
    found = []
    if exact:
        sentence = (
            f"{count(len(exact), 'text')} ({count(sum(map(len, exact)), 'row')}) stand with answers that contradict "
            "each other: no model can be right on all of them; agree on one answer"
        )
        found.append(Finding("contradictions", "warning", len(exact), sentence, examples(_answers(exact))))
    if close:
        sentence = (
            f"{count(len(close), 'text')} stand in nearly the same words with another answer: look whether the "
            "difference is meant"
        )
        found.append(Finding("near_contradictions", "note", len(close), sentence, examples(_answers(close))))
    return found


def _disagreeing(keyed: Iterable[tuple[str, _Place]]) -> list[list[_Place]]:
    """Give the places of every key that stands with more than one answer."""
    groups: dict[str, list[_Place]] = {}
    for key, place in keyed:
        groups.setdefault(key, []).append(place)
    return [
        places
        for places in groups.values()
        if len(places) > 1 and len({split.answer(row) for split, row in places}) > 1
    ]


def _answers(found: Sequence[Sequence[_Place]]) -> list[dict[str, Cell]]:
    """Give one example a text, with the first place of each of its answers."""
    rows: list[dict[str, Cell]] = []
    for places in found:
        firsts = {split.answer(row): (split, row) for split, row in reversed(places)}
        said = [f"{split.shown(row)} ({split.name} row {row + 1})" for split, row in reversed(firsts.values())]
        split, row = places[0]
        rows.append({"text": split.texts[row], "rows": len(places), "answers": " / ".join(said)})
    return rows


def _first_rows(keys: Sequence[str]) -> dict[str, int]:
    return {key: row for row, key in reversed(list(enumerate(keys)))}


def _groups(keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups

"""Labels and tags: how many rows each has, which are rare, and which stand in one split alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from models.tagging import OUTSIDE, spans
from training.checks.duplicates import Texts, normal
from training.checks.finding import Cell, Chart, Finding, count, examples, some, verb
from training.data.splits import IntentRows, TaggingRows

RARE = 5
"""A label or entity type with fewer training rows is called rare."""
_MAX_BARS = 40
_MARKED = 0.95
"""A word in at least this share of a label's rows, and in no row of another label, gives the label away."""


def classes(named: Mapping[str, Texts]) -> list[Finding]:
    """Find balance, rare and unseen values of labels and of entity types, and words that are the label itself."""
    found = []
    if named["train"].labels is not None:
        counts = {name: Counter(_labels(rows)) for name, rows in named.items()}
        found += [*_balance("label", counts), *_unseen("label", counts), *_markers(named["train"])]
    if any(isinstance(rows, TaggingRows) for rows in named.values()):
        counts = {name: _types(rows) for name, rows in named.items() if isinstance(rows, TaggingRows)}
        found += [*_balance("entity type", counts), *_unseen("entity type", counts), *_untagged(named)]
    return found


def _labels(rows: Texts) -> Sequence[str]:
    """Give every label, of rows with several labels each one."""
    return rows.each_label() if isinstance(rows, IntentRows) else rows.labels or ()


def _types(rows: TaggingRows) -> Counter[str]:
    return Counter(span.type for tags in rows.tags for span in spans(tags))


def _balance(what: str, counts: Mapping[str, Counter[str]]) -> list[Finding]:
    train = counts["train"]
    ordered = sorted(train, key=lambda name: (-train[name], name))
    if not ordered:
        return []
    most, least = train[ordered[0]], train[ordered[-1]]
    noun, unit = ("row", "rows") if what == "label" else ("entity", "entities")
    shown = ordered if len(ordered) <= _MAX_BARS else [*ordered[: _MAX_BARS // 2], *ordered[-_MAX_BARS // 2 :]]
    left_out = f", the {_MAX_BARS // 2} most and least frequent of {len(ordered)}" if len(shown) < len(ordered) else ""
    chart = Chart(
        f"{unit} of each {what}{left_out}",
        tuple(shown),
        {name: tuple(float(split[label]) for label in shown) for name, split in counts.items()},
        unit,
    )
    sentence = (
        f"{count(len(train), what)} in train, from {count(least, noun)} ({ordered[-1]}) to {most:,} ({ordered[0]}): "
        f"{most / least:.1f} to 1"
    )
    found = [Finding(f"balance_{_key(what)}", "note", most / least, sentence, chart=chart)]
    if rare := [name for name in ordered if train[name] < RARE]:
        rows: list[Mapping[str, Cell]] = [
            {what: name, **{split: split_counts[name] for split, split_counts in counts.items()}} for name in rare
        ]
        sentence = (
            f"{count(len(rare), what)} {verb(len(rare), 'has', 'have')} fewer than {RARE} train {unit} "
            f"({some(rare)}): too few to learn from; add some, or join them with another"
        )
        found.append(Finding(f"rare_{_key(what)}", "warning", len(rare), sentence, examples(rows)))
    return found


def _unseen(what: str, counts: Mapping[str, Counter[str]]) -> list[Finding]:
    found = []
    train = counts["train"]
    for split, of_split in counts.items():
        if unseen := sorted(set(of_split) - set(train)):
            n_rows = sum(of_split[name] for name in unseen)
            sentence = (
                f"{count(len(unseen), what)} of {split} ({some(unseen)}; {n_rows:,} in all) "
                f"{verb(len(unseen), 'is', 'are')} not in train: no model can answer them; add train rows or "
                "take them out"
            )
            rows: list[Mapping[str, Cell]] = [{what: name, split: of_split[name]} for name in unseen]
            found.append(Finding(f"unseen_{_key(what)}_{split}", "note", len(unseen), sentence, examples(rows)))
    held = {name for split, of_split in counts.items() if split != "train" for name in of_split}
    if len(counts) > 1 and (untested := sorted(set(train) - held)):
        sentence = (
            f"{count(len(untested), what)} of train ({some(untested)}) {verb(len(untested), 'is', 'are')} in no "
            "other split: nothing measures how well they are answered"
        )
        rows = [{what: name, "train": train[name]} for name in untested]
        found.append(Finding(f"untested_{_key(what)}", "note", len(untested), sentence, examples(rows)))
    return found


def _untagged(named: Mapping[str, Texts]) -> list[Finding]:
    train = named["train"]
    if not isinstance(train, TaggingRows):
        return []
    n_without = sum(all(tag == OUTSIDE for tag in tags) for tags in train.tags)
    if not n_without:
        return []
    sentence = (
        f"{n_without:,} of the {len(train):,} train texts {verb(n_without, 'has', 'have')} no entity: they teach what "
        "to leave alone"
    )
    return [Finding("untagged_texts", "note", n_without, sentence)]


def _markers(train: Texts) -> list[Finding]:
    """Find words that name their label: `__label__refund` left in a text is what a model would learn instead of it."""
    rows_of: dict[str, Counter[str]] = {}
    labels = train.labels or ()
    for text, label in zip(train.requests(), labels, strict=True):
        for word in set(normal(text).split()):
            rows_of.setdefault(word, Counter())[label] += 1
    n_rows = Counter(labels)
    marked: dict[str, str] = {}
    for word, of_labels in rows_of.items():
        if len(of_labels) == 1:
            ((label, n_with),) = of_labels.items()
            if n_rows[label] >= RARE and n_with >= _MARKED * n_rows[label]:
                marked.setdefault(label, word)
    n_large = sum(n >= RARE for n in n_rows.values())
    if len(marked) < 2 or len(marked) < n_large / 2:
        return []
    sentence = (
        f"{len(marked)} of the {n_large} labels with {RARE} rows or more have a word that stands in nearly all of "
        "their rows and in no other: the label leaks into the text; take it out unless users type it"
    )
    rows: list[Mapping[str, Cell]] = [
        {"label": label, "word": word, "rows": n_rows[label]} for label, word in marked.items()
    ]
    return [Finding("label_in_text", "warning", len(marked), sentence, examples(rows))]


def _key(what: str) -> str:
    return what.replace(" ", "_")

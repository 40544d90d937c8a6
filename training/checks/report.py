"""All findings on a data directory, for the terminal, as data and as the page that every training logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.checks.classes import classes
from training.checks.duplicates import Texts, duplicates
from training.checks.features import features
from training.checks.finding import Finding, count
from training.checks.html import page
from training.checks.judged import judged, with_lexical
from training.checks.judgements import judgement_noise
from training.checks.label_noise import label_noise
from training.checks.lengths import lengths
from training.checks.lists import lists
from training.checks.tag_noise import tag_noise
from training.config import TrainConfig
from training.data.splits import IntentRows, RankingRows, Splits, TaggingRows

PAGE = "data/report.html"
"""Where a run keeps the page."""
_MAX_SAID = 10
"""Notes and warnings that the terminal shows; the page has all."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a data directory holds: figures of each split, what the reader noted, and findings, warnings first."""

    family: str
    splits: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What calls for a look: the reader's notes and the sentences of the findings that are warnings."""
        return (*self.notes, *[finding.sentence for finding in self.findings if finding.severity == "warning"])

    def said(self, where: str) -> list[str]:
        """Give the lines for the terminal: notes of the reader, warnings, and how much more is `where` the page is."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"warning: {finding.sentence}" for finding in self.findings if finding.severity == "warning"]
        n_left = len(self.notes) + len(self.findings) - min(len(lines), _MAX_SAID)
        more = f"{count(n_left, 'finding')} more, and examples: {where}" if n_left else f"examples: {where}"
        return [*lines[:_MAX_SAID], more]

    def html(self) -> str:
        """Give the whole report as one page."""
        return page(self)


def report_on(splits: Splits[Any], config: TrainConfig) -> DataReport:
    """Look at what a training is about to read; takes seconds whatever the size, as large data are sampled."""
    named = splits.named()
    seed = config.training.seed
    found = _of_lists(named, seed) if config.task == "ranking" else _of_texts(named, config)
    found.sort(key=lambda finding: finding.severity != "warning")
    return DataReport(
        config.task, {name: _figures(rows) for name, rows in named.items()}, tuple(splits.notes), tuple(found)
    )


def _of_texts(named: Mapping[str, Texts], config: TrainConfig) -> list[Finding]:
    train, seed = named["train"], config.training.seed
    found = [*duplicates(named), *label_noise(train, seed)]
    if isinstance(train, TaggingRows):
        found += tag_noise(train, seed)
    texts = {name: rows.requests() for name, rows in named.items()}
    return [*found, *classes(named), *lengths(texts, config)]


def _of_lists(named: Mapping[str, RankingRows], seed: int) -> list[Finding]:
    train = named["train"]
    seen = judged(train, train.feature_names, seed)
    test = judged(named["test"], train.feature_names, seed) if "test" in named else None
    found = [*lists(named), *features(seen, test, seed)]
    if train.clicks is None:
        found += judgement_noise(with_lexical(seen, train), train, seed)
    return found


def _figures(rows: IntentRows | TaggingRows | RankingRows) -> dict[str, Any]:
    figures: dict[str, Any] = {"file": rows.file, "rows": len(rows), "sha256": rows.sha256}
    if isinstance(rows, RankingRows):
        sizes = [len(request.ids) for request in rows.lists]
        figures["documents"] = sum(sizes)
        figures["documents_per_query"] = _spread(sizes)
        figures["queries_without_relevant"] = sum(not (labels_D > 0).any() for labels_D in rows.labels)
        figures["features"] = len(rows.feature_names)
        return figures
    figures["words"] = _spread([len(text.split()) for text in rows.requests()])
    if rows.labels is not None:
        labels = rows.each_label() if isinstance(rows, IntentRows) else rows.labels
        figures["labels"] = len(set(labels))
        figures["most_frequent"] = dict(Counter(labels).most_common(3))
    if isinstance(rows, TaggingRows):
        figures["entity_types"] = len({tag[2:] for tags in rows.tags for tag in tags if tag != "O"})
    return figures


def _spread(values: Sequence[int]) -> dict[str, int]:
    """Smallest, median and largest."""
    return {"min": min(values), "median": int(np.median(values)), "max": max(values)}

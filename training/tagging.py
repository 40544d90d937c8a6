"""Training a tagger: BIO rows in, a network that tags every word out, and names the intent where rows have a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import ConfigError, DataError
from models.tagging import OUTSIDE
from training.config import TaggingStudentConfig, TaggingTransformerConfig
from training.data.conll import read_tagging_conll
from training.data.files import read_file as read_one
from training.data.files import read_splits
from training.data.gazetteer import Terms, read_gazetteer
from training.data.jsonl import read_tagging_jsonl
from training.data.labels import known_labels, known_tags, unknown_note
from training.data.splits import Read, Splits, TaggingRows
from training.fit import Checkpoint, Fitted, Recorder, is_refitted, refit_notes

READERS = {".jsonl": read_tagging_jsonl, ".conll": read_tagging_conll}

TaggingConfig = TaggingTransformerConfig | TaggingStudentConfig


@dataclass(frozen=True)
class TaggingSplits(Splits[TaggingRows]):
    """The rows, and the terms that the network is told of."""

    terms: Terms | None = None

    def sources(self) -> Mapping[str, Read]:
        """The splits, and the terms where there are some."""
        return super().sources() if self.terms is None else {**super().sources(), "gazetteer": self.terms}


def read(data_dir: Path, config: TaggingConfig) -> TaggingSplits:
    """Read train, valid, test and terms; a part of train is held out as valid where there is no such file.

    DataError for bad rows, where some files have labels and others have none, and where train has nothing to learn: one
    label only, or no tag but `O`. ConfigError for a prior by intent where rows have no labels.
    """
    splits = read_splits(
        data_dir,
        READERS,
        seed=config.training.seed,
        groups=TaggingRows.requests,
        strata=lambda rows: rows.labels or [""] * len(rows),
    )
    for rows in splits.named().values():
        if (rows.labels is None) != (splits.train.labels is None):
            has, lacks = (rows, splits.train) if splits.train.labels is None else (splits.train, rows)
            raise DataError(
                f"label must be in every file or in none, {has.file} has it and {lacks.file} does not; "
                "add it or take it away"
            )
    known_tags(splits.train.tags, splits.train.file)
    if splits.train.labels is None and isinstance(config, TaggingTransformerConfig) and config.model.intent_prior:
        raise ConfigError(
            f"model.intent_prior must be false where rows have no label, as in {splits.train.file}; add labels or "
            "leave it out",
            field="model.intent_prior",
        )
    if splits.train.labels is not None:
        known_labels(splits.train.labels, splits.train.file)
    refit = refit_notes(config.training, has_test=splits.test is not None)
    notes = (*splits.notes, *_unknown_notes(splits, config), *refit)
    # A student is told of the terms that its teacher knows.
    terms = None if isinstance(config, TaggingStudentConfig) else _terms(data_dir, config.model.gazetteer)
    return TaggingSplits(splits.train, splits.valid, splits.test, notes, terms=terms)


def read_file(path: Path, config: TaggingConfig) -> TaggingRows:
    """Read one labelled file; DataError for bad rows or an ending that is not one of READERS."""
    del config
    return read_one(path, READERS)


def fit(config: TaggingConfig, splits: Splits[TaggingRows], recorder: Recorder, checkpoint: Checkpoint) -> Fitted:
    """Fit the model that `config.model.kind` names, with an intent head where rows have labels."""
    # PyTorch takes seconds to import; whoever only reads rows does not need it.
    if isinstance(config, TaggingStudentConfig):
        from training import distil

        return distil.fit(config, splits, recorder, checkpoint)
    from training.network import fit_tagging

    terms = splits.terms if isinstance(splits, TaggingSplits) else None
    return fit_tagging(config, splits, None if terms is None else terms.gazetteer, recorder, checkpoint)


def _terms(data_dir: Path, name: str | None) -> Terms | None:
    if name is None:
        return None
    path = data_dir / name if (data_dir / name).exists() else Path(name)
    if not path.is_file():
        raise ConfigError(
            f"model.gazetteer must be a file below {data_dir} or a path, got {name}", field="model.gazetteer"
        )
    return read_gazetteer(path)


def _unknown_notes(splits: Splits[TaggingRows], config: TaggingConfig) -> tuple[str, ...]:
    others = splits.named()
    learned = others.pop("train")
    if is_refitted(config.training, splits):
        learned = learned.joined(others.pop("valid"))
    tags = {tag for row in learned.tags for tag in row}
    notes = unknown_note("tag", tags, {rows.file: _strange_tags(rows, tags) for rows in others.values()})
    if learned.labels is not None:
        notes += unknown_note("label", learned.labels, {rows.file: rows.labels or () for rows in others.values()})
    return notes


def _strange_tags(rows: TaggingRows, known: set[str]) -> list[str]:
    """One tag of every row: one that is not known, where the row has such."""
    return [next((tag for tag in tags if tag not in known), OUTSIDE) for tags in rows.tags]

"""Training an intent model: labelled texts in, a linear classifier or a fine-tuned transformer out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.errors import DataError
from models.manifest import OOS_LABEL
from training.config import IntentLinearConfig, IntentStudentConfig, IntentTransformerConfig
from training.data.csv_file import read_intent_csv
from training.data.files import read_file as read_one
from training.data.files import read_splits
from training.data.jsonl import read_intent_jsonl
from training.data.labels import known_labels, unknown_note
from training.data.splits import IntentRows, Splits
from training.fit import Checkpoint, Fitted, Recorder

READERS = {".jsonl": read_intent_jsonl, ".csv": read_intent_csv}

IntentConfig = IntentLinearConfig | IntentTransformerConfig | IntentStudentConfig


def read(data_dir: Path, config: IntentConfig) -> Splits[IntentRows]:
    """Read train, valid and test; a part of train, a tenth of every label, is held out where there is no valid file.

    DataError for bad rows, and where train has one label only.
    """
    splits = read_splits(
        data_dir,
        READERS,
        seed=config.training.seed,
        groups=lambda rows: [" ".join(text.casefold().split()) for text in rows.texts],
        strata=lambda rows: rows.labels,
    )
    for rows in splits.named().values():
        if (rows.label_sets is None) != (splits.train.label_sets is None):
            has, lacks = (rows, splits.train) if splits.train.label_sets is None else (splits.train, rows)
            raise DataError(
                f"labels must be lists in every file or in none, {has.file} has them and {lacks.file} does not; "
                "write them one way"
            )
    known = known_labels(splits.train.each_label(), splits.train.file)
    if config.scope is not None:
        known = (*known, OOS_LABEL)
    others = {rows.file: _strange_labels(rows, known) for name, rows in splits.named().items() if name != "train"}
    return Splits(splits.train, splits.valid, splits.test, (*splits.notes, *unknown_note("label", known, others)))


def read_file(path: Path, config: IntentConfig) -> IntentRows:
    """Read one labelled file; DataError for bad rows or an ending that is not one of READERS."""
    del config
    return read_one(path, READERS)


def fit(config: IntentConfig, splits: Splits[IntentRows], recorder: Recorder, checkpoint: Checkpoint) -> Fitted:
    """Fit the model that `config.model.kind` names."""
    if isinstance(config, IntentLinearConfig):
        from training import linear

        return linear.fit(config, splits, recorder, checkpoint)
    # PyTorch takes seconds to import, and only these kinds of model need it.
    if isinstance(config, IntentStudentConfig):
        from training import distil

        return distil.fit(config, splits, recorder, checkpoint)
    from training.network import fit_intent

    return fit_intent(config, splits, recorder, checkpoint)


def _strange_labels(rows: IntentRows, known: Sequence[str]) -> list[str]:
    """One label of every row: one that is not known, where the row has such."""
    return [next((label for label in labels if label not in known), known[0]) for labels in rows.sets()]

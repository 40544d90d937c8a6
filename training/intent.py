"""Training an intent model: labelled texts in, a linear classifier or a fine-tuned transformer out."""

from __future__ import annotations

from pathlib import Path

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
    known = known_labels(splits.train.labels, splits.train.file)
    others = {rows.file: rows.labels for name, rows in splits.named().items() if name != "train"}
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

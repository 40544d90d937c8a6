"""Training a tagger: BIO rows in, a network that tags every word out, and names the intent where rows have a label.

Shapes: N examples, T tokens of a text, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays, Encoded
from models.errors import DataError
from models.metrics import tagging_metrics
from models.tagging import OUTSIDE, TaggingModel
from training.config import TaggingTransformerConfig
from training.data.conll import read_tagging_conll
from training.data.files import read_splits
from training.data.jsonl import read_tagging_jsonl
from training.data.labels import unknown_note
from training.data.splits import Splits, TaggingRows
from training.fit import Checkpoint, Recorder
from training.loop import IGNORED, Examples, Score, train
from training.network import FittedNetwork, draft, known_labels, label_indices, labels_of

READERS = {".jsonl": read_tagging_jsonl, ".conll": read_tagging_conll}


def read(data_dir: Path, config: TaggingTransformerConfig) -> Splits[TaggingRows]:
    """Read train, valid and test; a part of train is held out as valid where there is no such file.

    DataError for bad rows, and where some files have labels and others have none.
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
    return Splits(splits.train, splits.valid, splits.test, (*splits.notes, *_unknown_notes(splits)))


def read_file(path: Path, config: TaggingTransformerConfig) -> TaggingRows:
    """Read one labelled file; DataError for bad rows or an ending that is not one of READERS."""
    del config
    name = path.name.removesuffix(".gz")
    for ending, reader in READERS.items():
        if name.endswith(ending):
            return reader(path)
    raise DataError(f"a tagging file must end in {' or '.join(READERS)} (or that with .gz), got {path.name}")


def fit(
    config: TaggingTransformerConfig, splits: Splits[TaggingRows], recorder: Recorder, checkpoint: Checkpoint
) -> FittedNetwork:
    """Fine-tune an encoder with a tag head, and an intent head where rows have labels.

    Stopped early on the valid rows' span_f1, or on the mean of span_f1 and intent_accuracy.
    """
    rows, valid = splits.train, splits.valid
    labels = known_labels(rows.labels, rows.file) if rows.labels is not None else ()
    tags = _known_tags(rows)
    drafted = draft(config.model, config.training, labels=labels, tags=tags)
    model = TaggingModel(drafted.contents, drafted.reader)
    encoded = drafted.encode(splits, model.encode)
    texts = valid.requests()

    def score(outputs: list[Arrays]) -> Score:
        answered = list(zip(texts, encoded["valid"], outputs, strict=True))
        predicted_tags = [model.tags(*one) for one in answered]
        predicted_labels = labels_of([model.decode(*one) for one in answered]) if labels else None
        ratios = tagging_metrics(valid.tags, predicted_tags, valid.labels, predicted_labels)
        main = [ratios[name].value for name in ("span_f1", "intent_accuracy") if name in ratios]
        return Score(sum(main) / len(main), {f"valid_{name}": ratio.value for name, ratio in ratios.items()})

    examples = Examples(
        encoded["train"],
        intents=label_indices(rows.labels, labels) if rows.labels is not None else None,
        tags=_targets(encoded["train"], rows.tags, tags),
    )
    facts = train(
        drafted.network,
        drafted.contents.signature,
        examples,
        encoded["valid"],
        score,
        config.training,
        recorder,
        checkpoint,
    )
    return FittedNetwork(drafted, facts)


def _known_tags(rows: TaggingRows) -> tuple[str, ...]:
    """`O` first, then the others in alphabetical order; DataError where there are no others."""
    others = sorted({tag for tags in rows.tags for tag in tags} - {OUTSIDE})
    if not others:
        raise DataError(f"{rows.file} must tag at least one word, all tags are {OUTSIDE}")
    return (OUTSIDE, *others)


def _targets(
    encoded: Sequence[Encoded], tags: Sequence[Sequence[str]], known: Sequence[str]
) -> list[NDArray[np.int64]]:
    """For every text [N] the tag of each of its tokens [T]: a word's tag at its first token, IGNORED elsewhere."""
    places = {tag: index for index, tag in enumerate(known)}
    targets = []
    for one, tags_W in zip(encoded, tags, strict=True):
        target_T = np.full(one.length, IGNORED, dtype=np.int64)
        for first, tag in zip(one.first_pieces, tags_W, strict=True):
            if first >= 0:
                target_T[first] = places[tag]
        targets.append(target_T)
    return targets


def _unknown_notes(splits: Splits[TaggingRows]) -> tuple[str, ...]:
    held = {rows.file: rows for name, rows in splits.named().items() if name != "train"}
    train_tags = {tag for tags in splits.train.tags for tag in tags}
    notes = unknown_note("tag", train_tags, {file: _strange_tags(rows, train_tags) for file, rows in held.items()})
    if splits.train.labels is not None:
        notes += unknown_note("label", splits.train.labels, {file: rows.labels or () for file, rows in held.items()})
    return notes


def _strange_tags(rows: TaggingRows, known: set[str]) -> list[str]:
    """One tag of every row: one that is not known, where the row has such."""
    return [next((tag for tag in tags if tag not in known), OUTSIDE) for tags in rows.tags]

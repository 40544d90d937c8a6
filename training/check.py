"""`rankyard check`: what is in a data directory and whether a workspace holds together, before hours go into either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import DataError, RankyardError
from registry.bundle import open_bundle
from registry.deployment import names, resolve
from registry.workspace import Workspace
from training.config import SCHEMAS, TrainConfig
from training.data.files import find_splits, read_source
from training.data.jsonl import objects
from training.data.splits import IntentRows, Problems, RankingRows, Splits, TaggingRows
from training.evaluate import AnyRows
from training.line import family_of

_RARE = 5
"""A label with fewer training rows is called rare."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a data directory holds: figures of each split, and what a person should know before training on it."""

    family: str
    splits: dict[str, dict[str, Any]]
    warnings: tuple[str, ...]


def check_data(directory: Path) -> DataReport:
    """Read every file as training would; DataError names what training would refuse."""
    config = _config_for(directory)
    splits: Splits[Any] = family_of(config.task).read(directory, config)
    named: Mapping[str, AnyRows] = splits.named()
    warnings = [*splits.notes, *_shared(named), *_labels(named)]
    return DataReport(config.task, {name: _figures(rows) for name, rows in named.items()}, tuple(warnings))


def check_workspace(workspace: Workspace) -> dict[str, str]:
    """Verify every bundle and published alias: its name maps to "ok" or to the sentence that says why not."""
    found: dict[str, str] = {}
    for path in sorted(workspace.bundles.glob("[!.]*")):
        found[f"bundle {path.name[:12]}"] = _verdict(partial(open_bundle, path))
    for pointer in names(workspace.deployment):
        for alias in pointer.aliases:
            ref = f"{pointer.name}@{alias}"
            found[ref] = _verdict(partial(resolve, workspace.deployment, ref))
    return found


def _config_for(directory: Path) -> TrainConfig:
    """The default configuration of the family that the training file belongs to, by its ending and first row."""
    endings = (".jsonl", ".csv", ".conll", ".txt", ".svm", ".parquet")
    train = find_splits(directory, endings)["train"]
    ending = next(ending for ending in endings if train.name.removesuffix(".gz").endswith(ending))
    task, kind = _BY_ENDING[ending] if ending in _BY_ENDING else _by_keys(train)
    return SCHEMAS[task, kind].model_validate({"task": task, "model": {"kind": kind}})


_BY_ENDING = {
    ".csv": ("intent", "linear"),
    ".conll": ("tagging", "transformer"),
    ".txt": ("ranking", "xgboost"),
    ".svm": ("ranking", "xgboost"),
    ".parquet": ("ranking", "xgboost"),
}
_BY_KEY = {"tokens": ("tagging", "transformer"), "query_id": ("ranking", "pairs"), "text": ("intent", "linear")}


def _by_keys(train: Path) -> tuple[str, str]:
    source = read_source(train)
    problems = Problems(source.file)
    _, first = next(objects(source, (), problems), (0, {}))
    for key, family in _BY_KEY.items():
        if key in first:
            return family
    raise DataError(
        f"{train.name} must have rows with tokens (tagging), query_id (ranking) or text (intent), "
        f"its first one has {', '.join(first) or 'nothing'}"
    )


def _figures(rows: AnyRows) -> dict[str, Any]:
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
        figures["labels"] = len(set(rows.labels))
        figures["most_frequent"] = dict(Counter(rows.labels).most_common(3))
    if isinstance(rows, TaggingRows):
        figures["entity_types"] = len({tag[2:] for tags in rows.tags for tag in tags if tag != "O"})
    return figures


def _spread(values: Sequence[int]) -> dict[str, int]:
    """Smallest, median and largest."""
    return {"min": min(values), "median": int(np.median(values)), "max": max(values)}


def _shared(named: Mapping[str, AnyRows]) -> list[str]:
    """Say which texts or query ids stand in two splits: a test on what was trained on proves nothing."""
    warnings = []
    contents = {name: _identities(rows) for name, rows in named.items()}
    for later in ("valid", "test"):
        for earlier in ("train", "valid"):
            if later in contents and earlier in contents and earlier != later:
                shared = set(contents[earlier]) & set(contents[later])
                if shared:
                    warnings.append(
                        f"{len(shared)} of {len(contents[later])} {later} examples stand in {earlier} too "
                        f"(such as {min(shared)!r})"
                    )
    return warnings


def _identities(rows: AnyRows) -> list[str]:
    return list(rows.query_ids) if isinstance(rows, RankingRows) else list(map(str, rows.requests()))


def _labels(named: Mapping[str, AnyRows]) -> list[str]:
    train = named["train"]
    if not isinstance(train, IntentRows | TaggingRows) or train.labels is None:
        return []
    warnings = []
    counts = Counter(train.labels)
    if rare := sorted(label for label, count in counts.items() if count < _RARE):
        warnings.append(f"{len(rare)} labels have fewer than {_RARE} training rows ({', '.join(rare[:5])})")
    for name, rows in named.items():
        if isinstance(rows, IntentRows | TaggingRows) and (unseen := set(rows.labels or ()) - set(counts)):
            warnings.append(f"{len(unseen)} labels of {name} are not in train ({', '.join(sorted(unseen)[:5])})")
    return warnings


def _verdict(verify: Callable[[], object]) -> str:
    try:
        verify()
    except RankyardError as error:
        return error.message
    return "ok"

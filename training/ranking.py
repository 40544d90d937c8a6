"""Rankers: candidate lists read from files, and trained by the module of their kind of model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from models.errors import DataError
from models.features import PairFeaturizer
from training.clicks import judged_by_clicks, labelled, propensities
from training.config import RankingConfig, RankingCrossEncoderConfig, RankingListwiseConfig, RankingPairsConfig
from training.data.clicks import is_click_log, read_clicks_jsonl, read_clicks_parquet
from training.data.files import read_file as read_one
from training.data.files import read_splits
from training.data.lists import some, with_features
from training.data.pairs import read_pairs_jsonl
from training.data.parquet import read_parquet
from training.data.splits import RankingRows, Splits
from training.data.svmrank import read_svmrank
from training.fit import Checkpoint, Fitted, Recorder, refit_notes
from training.slices import query_keys

READERS: Mapping[str, Callable[[Path], RankingRows]] = {
    ".txt": read_svmrank,
    ".svm": read_svmrank,
    ".parquet": lambda path: read_clicks_parquet(path) if is_click_log(path) else read_parquet(path),
    ".jsonl": lambda path: read_clicks_jsonl(path) if is_click_log(path) else read_pairs_jsonl(path),
}

AnyRankingConfig = RankingConfig | RankingPairsConfig | RankingListwiseConfig | RankingCrossEncoderConfig

FITS: Mapping[type[AnyRankingConfig], str] = {
    RankingConfig: "training.boosting",
    RankingPairsConfig: "training.boosting",
    RankingListwiseConfig: "training.listwise",
    RankingCrossEncoderConfig: "training.cross_encoder",
}
"""The module whose `fit` trains what a configuration asks for; imported on use, as each brings its library."""

_HELD_OUT_EVERY = 5
"""Lists vary far more than single texts do: a fifth of the queries, not a tenth, says when to stop."""


def read(data_dir: Path, config: AnyRankingConfig) -> Splits[RankingRows]:
    """Read train, valid and test; a fifth of the queries of train is held out where there is no valid file.

    Rows of a click log get labels from their clicks, as `training.debias` and `training.propensity` say. Features that
    train lacks are left out of the other splits, and said. DataError for bad rows, where the configuration and the
    rows do not go together, and where train or valid have nothing to learn from.
    """
    splits = read_splits(
        data_dir,
        READERS,
        seed=config.training.seed,
        groups=query_keys,
        every=_HELD_OUT_EVERY,
    )
    splits = judged_by_clicks(splits, config.training)
    notes = [*splits.notes]
    named = {}
    for name, rows in splits.named().items():
        if isinstance(config, RankingCrossEncoderConfig):
            named[name], found = _texts_alone(rows)
        else:
            named[name], found = _aligned(rows, splits.train)
        _check(named[name], config)
        notes += [*found, *_counted(rows)]
    if not any(len(set(labels_D.tolist())) > 1 for labels_D in named["train"].labels):
        raise DataError(f"{splits.train.file} must have a query whose documents differ in relevance, it has none")
    if not any(labels_D.any() for labels_D in named["valid"].labels):
        raise DataError(f"{splits.valid.file} must have a query with a relevant document (label above 0), it has none")
    notes += refit_notes(config.training, has_test="test" in named)
    return Splits(named["train"], named["valid"], named.get("test"), tuple(notes))


def read_file(path: Path, config: AnyRankingConfig) -> RankingRows:
    """Read one labelled file; DataError for bad rows, an ending that is not one of READERS, or rows without texts."""
    rows = read_one(path, READERS)
    if rows.clicks is not None:
        rows = labelled(rows, propensities(rows, config.training))
    if isinstance(config, RankingCrossEncoderConfig):
        rows, _ = _texts_alone(rows)
    _check(rows, config)
    return rows


def fit(config: AnyRankingConfig, splits: Splits[RankingRows], recorder: Recorder, checkpoint: Checkpoint) -> Fitted:
    """Train by the module that FITS names for this configuration."""
    fitted: Fitted = importlib.import_module(FITS[type(config)]).fit(config, splits, recorder, checkpoint)
    return fitted


def _aligned(rows: RankingRows, train: RankingRows) -> tuple[RankingRows, list[str]]:
    """Give the rows with the features that train has, and say which ones differ."""
    known = set(train.feature_names)
    unknown = [name for name in rows.feature_names if name not in known]
    absent = known - set(rows.feature_names)
    notes = []
    if unknown:
        notes.append(f"{rows.file} has features that {train.file} does not have ({some(unknown)}): they are left out")
    if absent:
        notes.append(f"{rows.file} lacks features of {train.file} ({some(sorted(absent))}): they are missing there")
    return with_features(rows, train.feature_names) if unknown else rows, notes


def _texts_alone(rows: RankingRows) -> tuple[RankingRows, list[str]]:
    if not rows.feature_names:
        return rows, []
    note = f"a cross-encoder reads texts alone: the features of {rows.file} ({some(rows.feature_names)}) are left out"
    return with_features(rows, ()), [note]


def _counted(rows: RankingRows) -> list[str]:
    notes = []
    n_empty = sum(not labels_D.any() for labels_D in rows.labels)
    if n_empty:
        notes.append(
            f"{n_empty} of the {len(rows)} queries of {rows.file} have no relevant document: training learns nothing "
            "from them, and ndcg@10 leaves them out"
        )
    return notes


def _check(rows: RankingRows, config: AnyRankingConfig) -> None:
    if lone := [query_id for query_id, labels_D in zip(rows.query_ids, rows.labels, strict=True) if len(labels_D) < 2]:
        raise DataError(
            f"a query must have at least two documents to be ordered, {len(lone)} of the {len(rows)} queries of "
            f"{rows.file} have one ({some(lone)}); remove them"
        )
    kind = config.model.kind
    if isinstance(config, RankingPairsConfig | RankingCrossEncoderConfig):
        if any(request.texts is None for request in rows.lists):
            raise DataError(
                f"{rows.file} must have query and title for `model.kind: {kind}`; use kind xgboost or listwise without"
            )
    elif not rows.feature_names:
        raise DataError(
            f"{rows.file} must have numeric features for `model.kind: {kind}`, it has none; "
            "use kind pairs or cross_encoder for query and title"
        )
    if isinstance(config, RankingPairsConfig) and (
        clash := [name for name in rows.feature_names if name in PairFeaturizer.names]
    ):
        raise DataError(
            f"the features {some(clash)} are computed from the texts, {rows.file} has them too; rename them"
        )

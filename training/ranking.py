"""Training a ranker: candidate lists in, LambdaMART by XGBoost out, over numeric features, text pairs, or both.

Shapes: N documents of all lists, F features, D documents of one list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import xgboost
from numpy.typing import NDArray

from models.batch import Arrays, Encoded
from models.errors import ConfigError, DataError
from models.features import PairFeaturizer
from models.manifest import Contents, EncoderOrigin, PairFeatures, Signature, TensorSpec
from models.ranking import RankingModel
from registry.bundle import MODEL
from training.config import PairsModel, RankingConfig, RankingPairsConfig
from training.data.files import read_file as read_one
from training.data.files import read_splits
from training.data.lists import MAX_LABEL, with_features
from training.data.pairs import read_pairs_jsonl
from training.data.parquet import read_parquet
from training.data.splits import RankingRows, Splits
from training.data.svmrank import read_svmrank
from training.fit import Checkpoint, Recorder
from training.trees import export_trees

READERS = {
    ".txt": read_svmrank,
    ".svm": read_svmrank,
    ".parquet": read_parquet,
    ".jsonl": read_pairs_jsonl,
}

AnyRankingConfig = RankingConfig | RankingPairsConfig

METRIC = "ndcg@10"

_HELD_OUT_EVERY = 5
"""Lists vary far more than single texts do: a fifth of the queries, not a tenth, says when to stop."""

_RECORD_EVERY = 5
"""Trees between two points of the curve of the valid metric."""


def read(data_dir: Path, config: AnyRankingConfig) -> Splits[RankingRows]:
    """Read train, valid and test; a fifth of the queries of train is held out where there is no valid file.

    Features that train lacks are left out of the other splits, and said. DataError for bad rows, where the
    configuration and the rows do not go together, and where train or valid have nothing to learn from.
    """
    splits = read_splits(
        data_dir,
        READERS,
        seed=config.training.seed,
        groups=lambda rows: [
            " ".join(one.text.casefold().split()) or query_id
            for query_id, one in zip(rows.query_ids, rows.lists, strict=True)
        ],
        every=_HELD_OUT_EVERY,
    )
    notes = [*splits.notes]
    named = {}
    for name, rows in splits.named().items():
        named[name], found = _aligned(rows, splits.train)
        _check(named[name], config)
        notes += [*found, *_counted(rows)]
    if not any(len(set(labels_D.tolist())) > 1 for labels_D in named["train"].labels):
        raise DataError(f"{splits.train.file} must have a query whose documents differ in relevance, it has none")
    if not any(labels_D.any() for labels_D in named["valid"].labels):
        raise DataError(f"{splits.valid.file} must have a query with a relevant document (label above 0), it has none")
    return Splits(named["train"], named["valid"], named.get("test"), tuple(notes))


def read_file(path: Path, config: AnyRankingConfig) -> RankingRows:
    """Read one labelled file; DataError for bad rows, an ending that is not one of READERS, or rows without texts."""
    rows = read_one(path, READERS)
    _check(rows, config)
    return rows


@dataclass(frozen=True)
class FittedTrees:
    """A booster, how many of its iterations count, and what computes the features of text pairs."""

    contents: Contents
    booster: xgboost.Booster
    featurizer: PairFeaturizer | None

    def write(self, directory: Path) -> Contents:
        """Write `model.onnx`, and the featurizer's files where there is one."""
        onnx.save_model(export_trees(self.booster), str(directory / MODEL))
        if self.featurizer is not None:
            self.featurizer.save(directory)
        return self.contents

    def outputs(self, requests: Sequence[Encoded]) -> list[Arrays]:
        """Give XGBoost's own scores [D] of each request."""
        if not requests:
            return []
        features_NF = np.concatenate([request.arrays["features"] for request in requests])
        scores_N = self.booster.inplace_predict(features_NF, iteration_range=(0, self.n_trees))
        ends = np.cumsum([request.length for request in requests])[:-1]
        return [{"score": scores_D} for scores_D in np.split(scores_N, ends)]

    def parameters(self) -> Mapping[str, float | int | str]:
        """How many trees count and were grown, and the valid metric of those that count."""
        return {
            "n_trees": self.n_trees,
            "n_grown_trees": self.booster.num_boosted_rounds(),
            f"valid_{METRIC}": self.booster.best_score,
        }

    @property
    def n_trees(self) -> int:
        """Trees up to the one with the best valid metric."""
        return int(self.booster.best_iteration) + 1


def fit(
    config: AnyRankingConfig, splits: Splits[RankingRows], recorder: Recorder, checkpoint: Checkpoint
) -> FittedTrees:
    """Boost LambdaMART trees on train until `patience` of them brought no better NDCG@10 on valid.

    Equal to `xgboost.train` on the same matrix with `boosting_parameters`, and repeatable by seed. Nothing is
    kept to resume from: XGBoost's random state is not saved, so a forest continued is not the one grown at once.
    """
    checkpoint.clear()
    train, valid = splits.train, splits.valid
    _check_labels(train, config)
    featurizer, encoder = _featurizer(config, train, recorder)
    names = (*(featurizer.names if featurizer is not None else ()), *train.feature_names)
    contents = _contents(config, names, encoder)
    model = RankingModel(contents, featurizer)
    train_matrix = xgboost.QuantileDMatrix(
        _features(model, train, "features of train", recorder),
        **_judgements(train, config),
        max_bin=config.training.max_bins,
    )
    # Lists without a relevant document have no NDCG; XGBoost would count them 1.
    judged = valid.take(np.flatnonzero([labels_D.any() for labels_D in valid.labels]))
    valid_matrix = xgboost.DMatrix(
        _features(model, judged, "features of valid", recorder), **_judgements(judged, config)
    )
    recorder.say(f"{len(train)} queries, {train_matrix.num_row()} documents, {len(names)} features")
    booster = xgboost.train(
        boosting_parameters(config, names, featurizer.rising if featurizer is not None else frozenset()),
        train_matrix,
        num_boost_round=config.training.n_trees,
        evals=[(valid_matrix, "valid")],
        early_stopping_rounds=config.training.patience,
        verbose_eval=False,
        callbacks=[_Curve(recorder, config.training.n_trees)],
    )
    return FittedTrees(contents, booster, featurizer)


def boosting_parameters(
    config: AnyRankingConfig, names: Sequence[str] = (), rising: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Give the parameters of `xgboost.train` that a configuration stands for.

    rising: those of the features `names` [F] with which a score must never fall.
    """
    training = config.training
    constraints = {"monotone_constraints": tuple(int(name in rising) for name in names)} if rising else {}
    return {
        "objective": config.model.objective,
        "booster": config.model.booster,
        "tree_method": "hist",
        "eval_metric": METRIC,
        "seed": training.seed,
        "nthread": training.n_threads,
        "learning_rate": training.learning_rate,
        "max_depth": training.max_depth,
        "min_child_weight": training.min_child_weight,
        "subsample": training.subsample,
        "colsample_bytree": training.feature_fraction,
        "lambda": training.l2,
        "max_bin": training.max_bins,
        "lambdarank_num_pair_per_sample": training.pairs_per_document,
        "lambdarank_pair_method": training.pair_method,
        **constraints,
    }


class _Curve(xgboost.callback.TrainingCallback):
    """Says the valid metric of every few trees."""

    def __init__(self, recorder: Recorder, n_trees: int) -> None:
        super().__init__()
        self._recorder = recorder
        self._n_trees = n_trees

    def after_iteration(self, model: xgboost.Booster, epoch: int, evals_log: Mapping[str, Any]) -> bool:
        """Record the tree number `epoch` (from 0)."""
        del model
        n_grown = epoch + 1
        if n_grown % _RECORD_EVERY == 0 or n_grown in {1, self._n_trees}:
            self._recorder.metrics({f"valid_{METRIC}": float(evals_log["valid"][METRIC][-1])}, n_grown)
            self._recorder.progress("growing trees", n_grown, self._n_trees)
        return False

    def after_training(self, model: xgboost.Booster) -> xgboost.Booster:
        """End the bar, however many trees it took."""
        self._recorder.progress("growing trees", self._n_trees, self._n_trees)
        return model


def _featurizer(
    config: AnyRankingConfig, train: RankingRows, recorder: Recorder
) -> tuple[PairFeaturizer | None, EncoderOrigin | None]:
    if not isinstance(config, RankingPairsConfig):
        return None, None
    # PyTorch, which exports the encoder, takes seconds to import.
    from training.encoder import resolve
    from training.pairs import fit_featurizer

    return fit_featurizer(config, train, recorder), resolve(config.model.encoder).origin


def _contents(config: AnyRankingConfig, names: tuple[str, ...], encoder: EncoderOrigin | None) -> Contents:
    model = config.model
    return Contents(
        family="ranking",
        signature=Signature(
            inputs=(TensorSpec(name="features", dtype="float32", shape=(-1, len(names))),),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
            layout="concat",
        ),
        features=names,
        pair_features=PairFeatures(max_tokens=model.max_tokens) if isinstance(model, PairsModel) else None,
        encoder=encoder,
    )


def _features(model: RankingModel, rows: RankingRows, stage: str, recorder: Recorder) -> NDArray[np.float32]:
    """Give features [N, F] of all lists, each by the very code that encodes a request in the gateway."""
    blocks: list[NDArray[Any]] = []
    for n_done, request in enumerate(rows.lists, start=1):
        blocks.append(model.encode(request).arrays["features"])
        if n_done % 100 == 0 or n_done == len(rows):
            recorder.progress(stage, n_done, len(rows))
    return np.concatenate(blocks)


def _judgements(rows: RankingRows, config: AnyRankingConfig) -> dict[str, Any]:
    query_numbers_N = np.repeat(np.arange(len(rows)), [len(labels_D) for labels_D in rows.labels])
    return {"label": np.concatenate(rows.labels), "qid": query_numbers_N, "nthread": config.training.n_threads}


def _aligned(rows: RankingRows, train: RankingRows) -> tuple[RankingRows, list[str]]:
    """Give the rows with the features that train has, and say which ones differ."""
    known = set(train.feature_names)
    unknown = [name for name in rows.feature_names if name not in known]
    absent = known - set(rows.feature_names)
    notes = []
    if unknown:
        notes.append(f"{rows.file} has features that {train.file} does not have ({_some(unknown)}): they are left out")
    if absent:
        notes.append(f"{rows.file} lacks features of {train.file} ({_some(sorted(absent))}): they are missing there")
    return with_features(rows, train.feature_names) if unknown else rows, notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
            f"{rows.file} have one ({_some(lone)}); remove them"
        )
    if isinstance(config, RankingPairsConfig):
        if any(request.texts is None for request in rows.lists):
            raise DataError(f"{rows.file} must have query and title for `model.kind: pairs`; use kind xgboost without")
        if clash := [name for name in rows.feature_names if name in PairFeaturizer.names]:
            raise DataError(
                f"the features {_some(clash)} are computed from the texts, {rows.file} has them too; rename them"
            )
    elif not rows.feature_names:
        raise DataError(
            f"{rows.file} must have numeric features for `model.kind: xgboost`, it has none; "
            "use kind pairs for query and title"
        )


def _check_labels(train: RankingRows, config: AnyRankingConfig) -> None:
    highest = max(float(labels_D.max()) for labels_D in train.labels)
    if config.model.objective == "rank:map" and highest > 1:
        raise ConfigError(
            f"model.objective rank:map takes labels 0 and 1, {train.file} has {highest:g}; use rank:ndcg",
            field="model.objective",
        )
    if highest > MAX_LABEL:
        raise DataError(f"a label must be at most {MAX_LABEL}, {train.file} has {highest:g}; use fewer grades")

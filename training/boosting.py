"""LambdaMART by XGBoost: candidate lists in, trees out, over numeric features, text pairs, or both.

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
from training.data.lists import MAX_LABEL, matrix
from training.data.splits import RankingRows, Splits
from training.fit import Checkpoint, Recorder
from training.trees import export_trees

BoostingConfig = RankingConfig | RankingPairsConfig

METRIC = "ndcg@10"

_RECORD_EVERY = 5
"""Trees between two points of the curve of the valid metric."""


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


def fit(config: BoostingConfig, splits: Splits[RankingRows], recorder: Recorder, checkpoint: Checkpoint) -> FittedTrees:
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
    columns = names if featurizer is None else None
    train_matrix = xgboost.QuantileDMatrix(
        _features(model, columns, train, "features of train", recorder),
        **_judgements(train, config),
        max_bin=config.training.max_bins,
    )
    # Lists without a relevant document have no NDCG; XGBoost would count them 1.
    judged = valid.take(np.flatnonzero([labels_D.any() for labels_D in valid.labels]))
    valid_matrix = xgboost.DMatrix(
        _features(model, columns, judged, "features of valid", recorder), **_judgements(judged, config)
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
    config: BoostingConfig, names: Sequence[str] = (), rising: frozenset[str] = frozenset()
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
    config: BoostingConfig, train: RankingRows, recorder: Recorder
) -> tuple[PairFeaturizer | None, EncoderOrigin | None]:
    if not isinstance(config, RankingPairsConfig):
        return None, None
    # PyTorch, which exports the encoder, takes seconds to import.
    from training.encoder import resolve
    from training.pairs import fit_featurizer

    return fit_featurizer(config, train, recorder), resolve(config.model.encoder).origin


def _contents(config: BoostingConfig, names: tuple[str, ...], encoder: EncoderOrigin | None) -> Contents:
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


def _features(
    model: RankingModel, names: tuple[str, ...] | None, rows: RankingRows, stage: str, recorder: Recorder
) -> NDArray[np.float32]:
    """Give features [N, F] of all lists, as the code that encodes a request in the gateway makes them.

    names: the model's features [F] where every one of them is a number that was read: the lists are then one matrix
    already. None, where texts become features: list by list.
    """
    whole_NF = matrix(rows, names) if names is not None else None
    if whole_NF is not None:
        return whole_NF
    blocks: list[NDArray[Any]] = []
    for n_done, request in enumerate(rows.lists, start=1):
        blocks.append(model.encode(request).arrays["features"])
        if n_done % 100 == 0 or n_done == len(rows):
            recorder.progress(stage, n_done, len(rows))
    return np.concatenate(blocks)


def _judgements(rows: RankingRows, config: BoostingConfig) -> dict[str, Any]:
    query_numbers_N = np.repeat(np.arange(len(rows)), [len(labels_D) for labels_D in rows.labels])
    return {"label": np.concatenate(rows.labels), "qid": query_numbers_N, "nthread": config.training.n_threads}


def _check_labels(train: RankingRows, config: BoostingConfig) -> None:
    highest = max(float(labels_D.max()) for labels_D in train.labels)
    if config.model.objective == "rank:map" and highest > 1:
        raise ConfigError(
            f"model.objective rank:map takes labels 0 and 1, {train.file} has {highest:g}; use rank:ndcg",
            field="model.objective",
        )
    if highest > MAX_LABEL:
        raise DataError(f"a label must be at most {MAX_LABEL}, {train.file} has {highest:g}; use fewer grades")

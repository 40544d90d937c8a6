"""LambdaMART by XGBoost: candidate lists in, trees out, over numeric features, text pairs, or both.

Shapes: N documents of all lists, F features, D documents of one list.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import xgboost
from numpy.typing import NDArray

from models.batch import Arrays, Encoded
from models.errors import ConfigError, DataError
from models.features import PairFeaturizer
from models.in_list import relative_name
from models.manifest import Contents, EncoderOrigin, PairFeatures, Signature, TensorSpec
from models.ranking import RankingModel
from registry.bundle import MODEL
from training.config import PairsModel, RankingConfig, RankingPairsConfig, RankingTraining
from training.data.lists import MAX_LABEL, matrix, some
from training.data.splits import RankingRows, Splits
from training.fit import Checkpoint, Recorder, is_refitted
from training.trees import export_trees

BoostingConfig = RankingConfig | RankingPairsConfig

METRIC = "ndcg@10"

_GAIN_STEPS = 64

_RECORD_EVERY = 5
"""Trees between two points of the curve of the valid metric."""


@dataclass(frozen=True)
class FittedTrees:
    """A booster, how many of its iterations count, and what computes the features of text pairs.

    n_refitted: queries of train and valid that it was grown on once more, 0 where it was not.
    """

    contents: Contents
    booster: xgboost.Booster
    featurizer: PairFeaturizer | None
    n_refitted: int = 0

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
        """How many steps count and were grown, and the valid metric of those that count, where it was measured.

        Where trees were grown once more, the metric is that of the trees before, which had not learned from valid.
        """
        score = self.booster.attr("best_score")
        return {
            "n_trees": self.n_trees,
            "n_grown_trees": self.booster.num_boosted_rounds(),
            **({} if score is None else {f"valid_{METRIC}": float(score)}),
            **({"refitted_queries": self.n_refitted} if self.n_refitted else {}),
        }

    @property
    def n_trees(self) -> int:
        """Steps up to the one with the best valid metric, or all, where none was looked for."""
        best = self.booster.attr("best_iteration")
        return self.booster.num_boosted_rounds() if best is None else int(best) + 1


def fit(config: BoostingConfig, splits: Splits[RankingRows], recorder: Recorder, checkpoint: Checkpoint) -> FittedTrees:
    """Boost LambdaMART trees on train until `patience` steps, if any, brought no better NDCG@10 on valid.

    With `refit`, as many steps are then grown on train and valid together: they are the model. Equal to `xgboost.train`
    on the same matrix with `boosting_parameters`, and repeatable by seed. Nothing is kept to resume from: XGBoost's
    random state is not saved, so a forest continued is not the one grown at once.
    """
    checkpoint.clear()
    train, valid = splits.train, splits.valid
    _check_labels(train, config)
    featurizer, encoder = _featurizer(config, train, recorder)
    own = (*(featurizer.names if featurizer is not None else ()), *train.feature_names)
    relative = relative_features(config, own)
    names = (*own, *map(relative_name, relative))
    parameters = boosting_parameters(config, names, featurizer.rising if featurizer is not None else frozenset())
    contents = _contents(config, names, relative, encoder, train.propensities)
    model = RankingModel(contents, featurizer)
    columns = names if featurizer is None and not relative else None
    # Lists without a relevant document have no NDCG; XGBoost would count them 1.
    judged = valid.take(np.flatnonzero([labels_D.any() for labels_D in valid.labels]))
    as_gains = any(rows.clicks is not None for rows in (train, valid))
    if as_gains:
        parameters["ndcg_exp_gain"] = False
    known = Judged.of(train, _features(model, columns, train, "features of train", recorder), as_gains=as_gains)
    held = Judged.of(judged, _features(model, columns, judged, "features of valid", recorder), as_gains=as_gains)
    recorder.say(f"{len(train)} queries, {len(known.labels)} documents, {len(names)} features")
    grow = _grow_by_spark if config.training.engine == "spark" else _grow
    fitted = FittedTrees(contents, grow(config.training, parameters, known, held, recorder), featurizer)
    if is_refitted(config.training, splits):
        fitted = _refitted(fitted, config.training, parameters, known.joined(held))
        recorder.say(f"{fitted.n_trees} steps grown once more, on {fitted.n_refitted} queries of train and valid")
    return fitted


@dataclass(frozen=True)
class Judged:
    """What trees are grown on: features [N, F], labels [N], and the number of each document's query [N], rising."""

    features: NDArray[np.float32]
    labels: NDArray[np.float32]
    query_numbers: NDArray[np.int64]

    @classmethod
    def of(cls, rows: RankingRows, features_NF: NDArray[np.float32], *, as_gains: bool) -> Judged:
        """Number the queries in the order of the rows; as_gains: labels are gains 2^label - 1, in 64ths.

        XGBoost takes whole numbers only, as grades whose gain is 2^grade - 1, or as gains themselves.
        """
        labels_N = np.concatenate(rows.labels)
        if as_gains:
            labels_N = np.round((np.exp2(labels_N) - 1) * _GAIN_STEPS)
        query_numbers_N = np.repeat(np.arange(len(rows)), [len(labels_D) for labels_D in rows.labels])
        return cls(features_NF, labels_N, query_numbers_N)

    def joined(self, other: Judged) -> Judged:
        """These queries, and behind them the other ones."""
        return Judged(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.query_numbers, other.query_numbers + self.n_queries]),
        )

    @property
    def n_queries(self) -> int:
        """How many lists the documents stand in."""
        return int(self.query_numbers[-1]) + 1


def relative_features(config: BoostingConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the features `names` of which the place in the list is a feature too.

    ConfigError where the configuration names one that there is not, or a place would have the name of another feature.
    """
    chosen = config.model.relative_to_list
    relative = tuple(names) if chosen == "all" else tuple(dict.fromkeys(chosen))
    for number, name in enumerate(relative):
        if name not in names:
            raise ConfigError(
                f"model.relative_to_list must name features of the training rows ({some(names)}) or be all, got "
                f"{name!r}; correct or remove it",
                field=f"model.relative_to_list[{number}]",
            )
        if relative_name(name) in names:
            raise ConfigError(
                f"{relative_name(name)} is the place of {name} in its list, the training rows have it too; rename it",
                field="model.relative_to_list",
            )
    return relative


def boosting_parameters(
    config: BoostingConfig, names: Sequence[str] = (), rising: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Give the parameters of `xgboost.train` that a configuration stands for.

    rising: those of the features `names` [F] with which a score must never fall, unless `training.monotone` says
    otherwise. A feature's place in the list is held to the same, unless it is named itself. ConfigError where
    `training.monotone` names a feature that there is not.
    """
    training = config.training
    parameters: dict[str, Any] = {
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
        "num_parallel_tree": training.trees_per_step,
        "lambdarank_num_pair_per_sample": training.pairs_per_document,
        "lambdarank_pair_method": training.pair_method,
        "lambdarank_normalization": training.normalize,
    }
    signs = dict.fromkeys(rising, 1) | dict(training.monotone)
    signs = {relative_name(name): sign for name, sign in signs.items()} | signs
    for name in training.monotone:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise ConfigError(
                f"training.monotone must name features of the training rows ({some(names)}), got {name!r}"
                + (f"; did you mean {close[0]}?" if close else "; correct or remove it"),
                field=f"training.monotone.{name}",
            )
    if signs:
        parameters["monotone_constraints"] = tuple(signs.get(name, 0) for name in names)
    return parameters


def _grow(
    training: RankingTraining, parameters: Mapping[str, Any], train: Judged, valid: Judged, recorder: Recorder
) -> xgboost.Booster:
    valid_matrix = xgboost.DMatrix(valid.features, valid.labels, qid=valid.query_numbers, nthread=training.n_threads)
    evaluated: dict[str, dict[str, list[float]]] = {}
    booster = xgboost.train(
        dict(parameters),
        _matrix(training, train),
        num_boost_round=training.n_trees,
        evals=[(valid_matrix, "valid")],
        evals_result=evaluated,
        early_stopping_rounds=training.patience,
        verbose_eval=False,
        callbacks=[_Curve(recorder, training.n_trees)],
    )
    if training.patience is None:
        booster.set_attr(best_score=repr(evaluated["valid"][METRIC][-1]))
    return booster


def _refitted(
    chosen: FittedTrees, training: RankingTraining, parameters: Mapping[str, Any], rows: Judged
) -> FittedTrees:
    """As many steps as count of `chosen`, grown on `rows`; the valid metric stays that of `chosen`."""
    booster = xgboost.train(dict(parameters), _matrix(training, rows), num_boost_round=chosen.n_trees)
    booster.set_attr(best_score=chosen.booster.attr("best_score"))
    return replace(chosen, booster=booster, n_refitted=rows.n_queries)


def _matrix(training: RankingTraining, rows: Judged) -> xgboost.DMatrix:
    return xgboost.QuantileDMatrix(
        rows.features, rows.labels, qid=rows.query_numbers, max_bin=training.max_bins, nthread=training.n_threads
    )


def _grow_by_spark(
    training: RankingTraining, parameters: Mapping[str, Any], train: Judged, valid: Judged, recorder: Recorder
) -> xgboost.Booster:
    from training.spark import grow

    return grow(training, parameters, train, valid, recorder)


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


def _contents(
    config: BoostingConfig,
    names: tuple[str, ...],
    relative: tuple[str, ...],
    encoder: EncoderOrigin | None,
    propensities: tuple[float, ...] | None,
) -> Contents:
    model = config.model
    return Contents(
        family="ranking",
        signature=Signature(
            inputs=(TensorSpec(name="features", dtype="float32", shape=(-1, len(names))),),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
            layout="concat",
        ),
        features=names,
        relative=relative,
        pair_features=PairFeatures(max_tokens=model.max_tokens) if isinstance(model, PairsModel) else None,
        encoder=encoder,
        propensities=propensities,
    )


def _features(
    model: RankingModel, names: tuple[str, ...] | None, rows: RankingRows, stage: str, recorder: Recorder
) -> NDArray[np.float32]:
    """Give features [N, F] of all lists, as the code that encodes a request in the gateway makes them.

    names: the model's features [F] where every one of them is a number that was read: the lists are then one matrix
    already. None, where features are computed: list by list.
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


def _check_labels(train: RankingRows, config: BoostingConfig) -> None:
    highest = max(float(labels_D.max()) for labels_D in train.labels)
    if config.model.objective == "rank:map" and (highest > 1 or train.clicks is not None):
        found = f"{highest:g}" if train.clicks is None else "clicks, which are of any size once weighed"
        raise ConfigError(
            f"model.objective rank:map takes labels 0 and 1, {train.file} has {found}; use rank:ndcg",
            field="model.objective",
        )
    if highest > MAX_LABEL:
        raise DataError(f"a label must be at most {MAX_LABEL}, {train.file} has {highest:g}; use fewer grades")

"""Training a ranker: equal to plain XGBoost, stopped by our own NDCG, repeatable, clear about data it cannot use."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
from pydantic import ValidationError
from scipy.stats import rankdata

from models.batch import collate, split
from models.errors import ConfigError, DataError
from models.metrics import ranking_metrics
from models.model import open_model
from models.ranking import RankingModel
from models.session import OnnxSession
from training import ranking
from training.boosting import boosting_parameters, relative_features
from training.config import RankingConfig, RankingPairsConfig
from training.data.splits import RankingRows, Splits
from training.fit import Checkpoint

N_FEATURES = 6


class Listener:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.curve: dict[int, float] = {}
        self.stages: dict[str, tuple[int, int]] = {}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.curve[step] = values["valid_ndcg@10"]

    def progress(self, stage: str, done: int, total: int) -> None:
        self.stages[stage] = (done, total)

    def say(self, sentence: str) -> None:
        assert sentence


def config(objective: str = "rank:ndcg", relative: Any = (), **training: Any) -> RankingConfig:
    settings = {"n_trees": 40, "patience": 8, "learning_rate": 0.2, "max_depth": 3, "n_threads": 1, **training}
    model = {"kind": "xgboost", "objective": objective, "relative_to_list": relative}
    return RankingConfig.model_validate({"task": "ranking", "model": model, "training": settings})


def pairs_config() -> RankingPairsConfig:
    return RankingPairsConfig.model_validate({"task": "ranking", "model": {"kind": "pairs"}})


def svmrank(seed: int, n_queries: int, *, n_empty: int = 0) -> str:
    """Lists whose relevance follows two features, with values missing; the last `n_empty` have nothing relevant."""
    rng = np.random.default_rng(seed)
    lines = []
    for query in range(n_queries):
        for _ in range(int(rng.integers(2, 16))):
            x = rng.normal(size=N_FEATURES)
            label = int(np.clip(np.round(x[0] - x[1] + rng.normal(0, 0.7)), 0, 3)) if query < n_queries - n_empty else 0
            pairs = [f"{place}:{value:.6f}" for place, value in enumerate(x, start=1) if rng.random() > 0.1]
            lines.append(f"{label} qid:{query} {' '.join(pairs)}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lists")
    (directory / "train.txt").write_text(svmrank(1, 80, n_empty=6))
    (directory / "vali.txt.gz").write_bytes(gzip.compress(svmrank(2, 30, n_empty=7).encode()))
    return directory


@pytest.fixture(scope="module")
def splits(data: Path) -> Splits[RankingRows]:
    return ranking.read(data, config())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoints") / "ranker", "fingerprint")


def matrix(rows: RankingRows, where: np.ndarray | None = None) -> xgboost.DMatrix:
    """The rows as a person would hand them to XGBoost."""
    places = range(len(rows)) if where is None else np.flatnonzero(where).tolist()
    features = np.concatenate([np.stack([rows.lists[i].features[n] for n in rows.feature_names], 1) for i in places])
    qid = np.repeat(np.arange(len(places)), [len(rows.labels[i]) for i in places])
    return xgboost.DMatrix(features, np.concatenate([rows.labels[i] for i in places]), qid=qid)


@pytest.mark.parametrize("pair_method", ["topk", "mean"])
def test_scores_are_those_of_plain_xgboost_with_the_same_settings(
    splits: Splits[RankingRows], checkpoint: Checkpoint, pair_method: str
) -> None:
    fitted = ranking.fit(config(pair_method=pair_method), splits, Listener(), checkpoint)
    has_relevant = np.array([labels_D.any() for labels_D in splits.valid.labels])
    plain = xgboost.train(
        {
            "objective": "rank:ndcg",
            "eval_metric": "ndcg@10",
            "seed": 13,
            "nthread": 1,
            "learning_rate": 0.2,
            "max_depth": 3,
            "subsample": 0.8,
            "colsample_bytree": 0.8,
            "lambdarank_num_pair_per_sample": config().training.pairs_per_document,
            "lambdarank_pair_method": pair_method,
        },
        matrix(splits.train),
        40,
        evals=[(matrix(splits.valid, has_relevant), "valid")],
        early_stopping_rounds=8,
        verbose_eval=False,
    )
    expected = plain.predict(matrix(splits.valid), iteration_range=(0, plain.best_iteration + 1))
    model = open_model_of(fitted)
    found = fitted.outputs([model.encode(request) for request in splits.valid.requests()])
    np.testing.assert_array_equal(np.concatenate([one["score"] for one in found]), expected)
    assert [len(one["score"]) for one in found] == [len(labels_D) for labels_D in splits.valid.labels]


def test_the_exported_model_gives_the_same_bits_through_a_bundles_files(
    splits: Splits[RankingRows], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    fitted = ranking.fit(config(), splits, Listener(), checkpoint)
    contents = fitted.write(tmp_path)
    assert contents.features == tuple(str(place) for place in range(1, N_FEATURES + 1))
    model = open_model(tmp_path, contents)
    encoded = [model.encode(request) for request in splits.valid.requests()]
    outputs = OnnxSession(tmp_path / "model.onnx").run(collate(encoded, contents.signature))
    assert outputs["score"].shape == (sum(one.length for one in encoded),)
    for found, expected in zip(split(outputs, encoded, contents.signature), fitted.outputs(encoded), strict=True):
        np.testing.assert_array_equal(found["score"], expected["score"])


def test_training_stops_by_the_metric_that_evaluation_reports(
    splits: Splits[RankingRows], checkpoint: Checkpoint
) -> None:
    listener = Listener()
    fitted = ranking.fit(config(), splits, listener, checkpoint)
    model = open_model_of(fitted)
    found = fitted.outputs([model.encode(request) for request in splits.valid.requests()])
    ratios = ranking_metrics(splits.valid.labels, [np.asarray(one["score"], dtype=np.float32) for one in found])
    facts = fitted.parameters()
    assert facts["valid_ndcg@10"] == pytest.approx(ratios["ndcg@10"].value, abs=1e-6)
    assert int(facts["n_trees"]) + 8 == facts["n_grown_trees"] < 40
    assert max(listener.curve.values()) <= float(facts["valid_ndcg@10"])
    assert listener.stages["growing trees"] == (40, 40)
    assert list(listener.curve)[:3] == [1, 5, 10]


def test_without_patience_all_trees_count(splits: Splits[RankingRows], checkpoint: Checkpoint, tmp_path: Path) -> None:
    listener = Listener()
    fitted = ranking.fit(config(patience=None), splits, listener, checkpoint)
    facts = fitted.parameters()
    assert facts["n_trees"] == facts["n_grown_trees"] == 40
    assert facts["valid_ndcg@10"] == listener.curve[40]
    contents = fitted.write(tmp_path)
    encoded = [RankingModel(contents).encode(request) for request in splits.valid.requests()]
    found = OnnxSession(tmp_path / "model.onnx").run(collate(encoded, contents.signature))["score"]
    features = np.concatenate([one.arrays["features"] for one in encoded])
    np.testing.assert_array_equal(found, fitted.booster.inplace_predict(features))


def test_a_seed_repeats_a_training_and_another_one_does_not(
    splits: Splits[RankingRows], checkpoint: Checkpoint
) -> None:
    dumps = [ranking.fit(config(seed=seed), splits, Listener(), checkpoint).booster.get_dump() for seed in (7, 7, 8)]
    assert dumps[0] == dumps[1]
    assert dumps[0] != dumps[2]


def test_queries_are_held_out_whole_and_repeatably_where_there_is_no_valid_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes((data / "train.txt").read_bytes())
    first, second = (ranking.read(tmp_path, config()) for _ in range(2))
    assert len(first.valid) == 16
    assert len(first.train) == 64
    assert not set(first.train.query_ids) & set(first.valid.query_ids)
    assert first.valid.query_ids == second.valid.query_ids
    assert "16 of the 80 examples of train.txt are held out as valid" in first.notes[0]


def test_lists_that_teach_nothing_and_features_that_differ_are_counted_and_said(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("1 qid:1 1:1 2:1\n0 qid:1 1:2 2:1\n0 qid:3 1:1\n0 qid:3 1:2\n")
    (tmp_path / "valid.txt").write_text("1 qid:4 1:1 9:1\n0 qid:4 1:2\n")
    splits = ranking.read(tmp_path, config())
    assert splits.notes == (
        (
            "1 of the 2 queries of train.txt have no relevant document: training learns nothing from them, and ndcg@10 "
            "leaves them out"
        ),
        "valid.txt has features that train.txt does not have (9): they are left out",
        "valid.txt lacks features of train.txt (2): they are missing there",
    )
    assert splits.valid.feature_names == ("1",)


@pytest.mark.parametrize(
    ("train", "valid", "rule"),
    [
        (
            "1 qid:1 1:1\n0 qid:1 1:2\n1 qid:5 1:1\n",
            "1 qid:2 1:1\n0 qid:2 1:2\n",
            "at least two documents to be ordered, 1 of the 2 queries of train.txt have one",
        ),
        (
            "1 qid:1 1:1\n1 qid:1 1:2\n",
            "1 qid:2 1:1\n0 qid:2 1:2\n",
            "train.txt must have a query whose documents differ",
        ),
        (
            "1 qid:1 1:1\n0 qid:1 1:2\n",
            "0 qid:2 1:1\n0 qid:2 1:2\n",
            "valid.txt must have a query with a relevant document",
        ),
        ("1 qid:1\n0 qid:1\n", "1 qid:2\n0 qid:2\n", "train.txt must have numeric features"),
    ],
)
def test_data_that_nothing_can_be_learned_from_is_refused(tmp_path: Path, train: str, valid: str, rule: str) -> None:
    (tmp_path / "train.txt").write_text(train)
    (tmp_path / "valid.txt").write_text(valid)
    with pytest.raises(DataError, match=rule):
        ranking.read(tmp_path, config())


def test_pairs_need_texts_and_leave_the_names_of_their_features_free(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"query_id": ["a", "a"], "doc_id": ["x", "y"], "label": [1, 0], "cosine": [0.5, 0.1]}
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match="must have query and title"):
        ranking.read_file(path, pairs_config())
    pq.write_table(pa.table({**columns, "query": ["q", "q"], "title": ["t", "u"]}), path)
    with pytest.raises(DataError, match="features cosine are computed from the texts"):
        ranking.read_file(path, pairs_config())
    assert ranking.read_file(path, config()).feature_names == ("cosine",)


def test_scores_never_move_against_a_monotone_feature(splits: Splits[RankingRows], checkpoint: Checkpoint) -> None:
    """The first feature is good, the second bad; held to the contrary, the scores follow the constraint."""
    rng = np.random.default_rng(5)
    steps = np.linspace(-3, 3, 50, dtype=np.float32)
    for sign in (1, -1):
        fitted = ranking.fit(config(monotone={"1": sign, "2": -1}), splits, Listener(), checkpoint)
        for row in rng.normal(size=(20, N_FEATURES)).astype(np.float32):
            for place, expected in ((0, sign), (1, -1)):
                rows = np.tile(row, (len(steps), 1))
                rows[:, place] = steps
                assert np.all(np.diff(fitted.booster.inplace_predict(rows)) * expected >= 0)
    free = ranking.fit(config(), splits, Listener(), checkpoint).booster
    rows = np.zeros((len(steps), N_FEATURES), np.float32)
    rows[:, 0] = steps
    assert np.any(np.diff(free.inplace_predict(rows)) < 0)


def test_an_unknown_monotone_feature_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"monotone must name features .*got 'prize'; did you mean price\?"):
        boosting_parameters(config(monotone={"prize": -1}), ("price", "rating"))
    with pytest.raises(ConfigError, match=r"got 'zzz'; correct or remove it"):
        boosting_parameters(config(monotone={"zzz": 1}), ("price", "rating"))


def test_monotone_features_join_those_of_pairs_and_overrule_them() -> None:
    parameters = boosting_parameters(
        config(monotone={"3": 1, "b": -1}), ("a", "b", "c", "3"), rising=frozenset({"a", "b"})
    )
    assert parameters["monotone_constraints"] == (1, -1, 0, 1)
    assert config(monotone={3: 1}).training.monotone == {"3": 1}  # as YAML reads the number of an SVMrank feature
    assert "monotone_constraints" not in boosting_parameters(config(), ("a",))


def test_places_in_the_list_are_learned_from_and_computed_again_by_the_exported_model(
    splits: Splits[RankingRows], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    fitted = ranking.fit(config(relative=("2", "1")), splits, Listener(), checkpoint)
    contents = fitted.write(tmp_path)
    assert contents.features == (*splits.train.feature_names, "2_in_list", "1_in_list")
    model = open_model(tmp_path, contents)
    requests = list(splits.valid.requests())
    encoded = [model.encode(request) for request in requests]
    for request, one in zip(requests, encoded, strict=True):
        own = np.stack([request.features[name] for name in ("2", "1")], axis=1)
        ranks = rankdata(own, axis=0, nan_policy="omit")
        places = (ranks - 0.5) / np.maximum((~np.isnan(own)).sum(axis=0), 1)
        np.testing.assert_allclose(one.arrays["features"][:, -2:], places, rtol=1e-6)
    used = {name for tree in fitted.booster.get_dump() for name in re.findall(r"\[f(\d+)", tree)}
    assert {str(N_FEATURES), str(N_FEATURES + 1)} <= used
    outputs = OnnxSession(tmp_path / "model.onnx").run(collate(encoded, contents.signature))
    for found, expected in zip(split(outputs, encoded, contents.signature), fitted.outputs(encoded), strict=True):
        np.testing.assert_array_equal(found["score"], expected["score"])


def test_a_place_in_the_list_is_held_to_what_its_feature_is_held_to_unless_it_is_named_itself() -> None:
    names = ("a", "b", "a_in_list", "b_in_list")
    parameters = boosting_parameters(config(monotone={"a": -1, "b_in_list": -1}), names, rising=frozenset({"b"}))
    assert parameters["monotone_constraints"] == (-1, 1, -1, -1)


def test_features_relative_to_the_list_are_named_or_all_and_must_be_there() -> None:
    assert relative_features(config(relative=[2, 1, 2]), ("1", "2", "3")) == ("2", "1")  # as YAML reads numbers
    assert relative_features(config(relative="all"), ("1", "2", "3")) == ("1", "2", "3")
    assert relative_features(config(), ("1", "2", "3")) == ()
    with pytest.raises(ConfigError, match=r"relative_to_list must name features .*got 'prize'") as caught:
        relative_features(config(relative=["price", "prize"]), ("price",))
    assert caught.value.field == "model.relative_to_list[1]"
    with pytest.raises(ConfigError, match=r"a_in_list is the place of a in its list.*rename it"):
        relative_features(config(relative="all"), ("a", "a_in_list"))


def test_steps_of_several_trees_are_exported_whole(
    splits: Splits[RankingRows], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    fitted = ranking.fit(config(trees_per_step=3, n_trees=12, normalize=False), splits, Listener(), checkpoint)
    assert len(fitted.booster.get_dump()) == 3 * int(fitted.parameters()["n_grown_trees"])
    contents = fitted.write(tmp_path)
    encoded = [RankingModel(contents).encode(request) for request in splits.valid.requests()]
    outputs = OnnxSession(tmp_path / "model.onnx").run(collate(encoded, contents.signature))
    expected = np.concatenate([one["score"] for one in fitted.outputs(encoded)])
    np.testing.assert_array_equal(outputs["score"], expected)


def with_test(splits: Splits[RankingRows]) -> Splits[RankingRows]:
    return Splits(splits.train, splits.valid, splits.valid.take(np.arange(5)))


def test_a_refit_grows_as_many_trees_as_valid_chose_on_train_and_valid_together(
    splits: Splits[RankingRows], checkpoint: Checkpoint
) -> None:
    chosen = ranking.fit(config(), with_test(splits), Listener(), checkpoint)
    again = ranking.fit(config(refit=True), with_test(splits), Listener(), checkpoint)
    has_relevant = [i for i, labels_D in enumerate(splits.valid.labels) if labels_D.any()]
    held = splits.valid.take(np.array(has_relevant))
    together = RankingRows(
        splits.train.query_ids + tuple(f"held {one}" for one in held.query_ids),
        splits.train.lists + held.lists,
        splits.train.labels + held.labels,
        splits.train.feature_names,
    )
    plain = xgboost.train(boosting_parameters(config()), matrix(together), chosen.n_trees)
    assert again.booster.get_dump() == plain.get_dump()
    assert again.parameters() == {
        "n_trees": chosen.n_trees,
        "n_grown_trees": chosen.n_trees,
        "valid_ndcg@10": chosen.parameters()["valid_ndcg@10"],  # of the trees that had not learned from valid
        "refitted_queries": len(together),
    }


def test_a_refit_is_left_out_and_said_where_only_valid_can_judge(data: Path, checkpoint: Checkpoint) -> None:
    refit = config(refit=True)
    without_test = ranking.read(data, refit)
    assert without_test.notes[-1] == "no test file: training.refit is left out, so that valid can judge"
    fitted = ranking.fit(refit, without_test, Listener(), checkpoint)
    assert "refitted_queries" not in fitted.parameters()
    assert fitted.booster.get_dump() == ranking.fit(config(), without_test, Listener(), checkpoint).booster.get_dump()


def test_a_refit_by_spark_is_refused() -> None:
    with pytest.raises(ValidationError, match="refit is for engine local"):
        config(refit=True, engine="spark")


def test_rank_map_takes_labels_0_and_1_alone(splits: Splits[RankingRows], checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="rank:map takes labels 0 and 1"):
        ranking.fit(config("rank:map"), splits, Listener(), checkpoint)


def open_model_of(fitted: Any) -> Any:
    return RankingModel(fitted.contents, fitted.featurizer)

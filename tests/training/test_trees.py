import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import xgboost
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import InputError
from models.session import OnnxSession
from training.trees import export_trees

SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, np.finfo("f4").tiny, np.finfo("f4").max, np.finfo("f4").min],
    dtype=np.float32,
)

PARAMETERS = st.fixed_dictionaries(
    {
        "objective": st.sampled_from(["rank:ndcg", "rank:pairwise", "rank:map", "reg:squarederror"]),
        "tree_method": st.sampled_from(["hist", "exact", "approx"]),
        "max_depth": st.integers(1, 7),
        "learning_rate": st.sampled_from([0.03, 0.3, 1.0]),
        "gamma": st.sampled_from([0.0, 0.1, 5.0]),
        "subsample": st.sampled_from([0.5, 1.0]),
        "num_parallel_tree": st.sampled_from([1, 1, 3]),
        "base_score": st.sampled_from([None, 0.0, -3.7, 1e3]),
    }
)


def grow(parameters: dict[str, Any], seed: int, n_trees: int, n_features: int, part_missing: float) -> xgboost.Booster:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(240, n_features)).astype(np.float32)
    features[:, 0] = rng.integers(-2, 3, size=240)  # splits fall on values that rows have
    features[:, -1] *= np.float32(1e-41)  # denormal thresholds
    labels = rng.integers(0, 2, size=240)
    features[rng.random(features.shape) < part_missing] = np.nan
    given_parameters = {name: value for name, value in parameters.items() if value is not None}
    matrix = xgboost.DMatrix(features, labels, qid=np.repeat(np.arange(12), 20))
    return xgboost.train({"seed": seed, "nthread": 1, **given_parameters}, matrix, n_trees)


def thresholds(booster: xgboost.Booster) -> NDArray[np.float32]:
    trees = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    found = [
        value
        for tree in trees
        for value, left in zip(tree["split_conditions"], tree["left_children"], strict=True)
        if left >= 0
    ]
    return np.unique(np.array(found, dtype=np.float32))


def rows_at_the_edges(booster: xgboost.Booster, seed: int, n_rows: int = 300) -> NDArray[np.float32]:
    """Rows of thresholds, the floats on either side of them, and whatever floats have that numbers have not."""
    at = thresholds(booster)
    values = np.concatenate([at, np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf)), SPECIAL])
    return np.random.default_rng(seed).choice(values, size=(n_rows, booster.num_features()))


def scores_by_onnx(booster: xgboost.Booster, features: NDArray[np.float32], directory: Path) -> NDArray[np.float32]:
    model = export_trees(booster)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(directory / "model.onnx"))
    scores = OnnxSession(directory / "model.onnx").run({"features": features})["score"]
    assert scores.shape == (len(features),)
    return scores.astype(np.float32, copy=False)


@settings(max_examples=60, deadline=None)
@given(
    parameters=PARAMETERS,
    seed=st.integers(0, 2**16),
    n_trees=st.integers(1, 25),
    n_features=st.integers(1, 9),
    part_missing=st.sampled_from([0.0, 0.05, 0.6]),
)
@example(  # pruned to so few nodes that their ids lie beyond the number of nodes
    parameters={
        "objective": "rank:ndcg",
        "tree_method": "exact",
        "max_depth": 2,
        "learning_rate": 0.03,
        "gamma": 0.1,
        "subsample": 0.5,
        "num_parallel_tree": 1,
        "base_score": None,
    },
    seed=7873,
    n_trees=1,
    n_features=1,
    part_missing=0.0,
)
def test_on_one_thread_the_export_gives_xgboosts_own_bits_for_any_floats(
    tmp_path_factory: pytest.TempPathFactory,
    parameters: dict[str, Any],
    seed: int,
    n_trees: int,
    n_features: int,
    part_missing: float,
) -> None:
    booster = grow(parameters, seed, n_trees, n_features, part_missing)
    features = rows_at_the_edges(booster, seed)
    expected = booster.inplace_predict(features)
    found = scores_by_onnx(booster, features, tmp_path_factory.mktemp("trees"))
    np.testing.assert_array_equal(found, expected)


def test_each_row_scores_the_same_alone_and_among_others(tmp_path: Path) -> None:
    booster = grow({"max_depth": 6, "objective": "rank:ndcg"}, 3, 120, 6, 0.05)
    features = rows_at_the_edges(booster, 3)
    together = scores_by_onnx(booster, features, tmp_path)
    session = OnnxSession(tmp_path / "model.onnx")
    alone = np.concatenate([session.run({"features": row[None]})["score"] for row in features])
    np.testing.assert_array_equal(alone, together)


def test_on_two_threads_scores_differ_in_the_last_places_only_and_the_order_stands(tmp_path: Path) -> None:
    booster = grow({"max_depth": 6, "objective": "reg:squarederror"}, 3, 300, 6, 0.05)
    features = rows_at_the_edges(booster, 3, n_rows=2000)
    expected = scores_by_onnx(booster, features, tmp_path)
    found = OnnxSession(tmp_path / "model.onnx", n_threads=2).run({"features": features})["score"]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    order = np.argsort(-np.round(expected.astype(np.float64), 4), kind="stable")
    np.testing.assert_array_equal(order, np.argsort(-np.round(np.float64(found), 4), kind="stable"))


def test_trees_after_the_best_iteration_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    train, valid = (xgboost.DMatrix(features, rng.normal(size=200)) for _ in range(2))
    parameters = {"num_parallel_tree": 2, "subsample": 0.5, "max_depth": 3}
    booster = xgboost.train(
        parameters, train, 60, evals=[(valid, "valid")], early_stopping_rounds=8, verbose_eval=False
    )
    best = booster.best_iteration
    assert best + 1 < booster.num_boosted_rounds()
    found = scores_by_onnx(booster, features, tmp_path)
    np.testing.assert_array_equal(found, booster.inplace_predict(features, iteration_range=(0, best + 1)))
    assert not np.array_equal(found, booster.inplace_predict(features))


def test_a_booster_without_trees_gives_its_base_score(tmp_path: Path) -> None:
    booster = xgboost.train({"base_score": 0.25}, xgboost.DMatrix(np.ones((4, 2)), np.ones(4)), 0)
    np.testing.assert_array_equal(scores_by_onnx(booster, np.zeros((3, 2), "f4"), tmp_path), np.full(3, 0.25, "f4"))


def test_trees_of_one_leaf_and_features_that_no_tree_uses_are_exported(tmp_path: Path) -> None:
    features = np.zeros((50, 7), dtype=np.float32)
    features[25:, 4] = 1
    labels = features[:, 4] * 10
    for parameters in ({"gamma": 1e9}, {"max_depth": 2}):
        booster = xgboost.train({**parameters, "base_score": 0.5}, xgboost.DMatrix(features, labels), 4)
        np.testing.assert_array_equal(scores_by_onnx(booster, features, tmp_path), booster.inplace_predict(features))
    (shape,) = [value.type.tensor_type.shape for value in export_trees(booster).graph.input]
    assert shape.dim[1].dim_value == 7


def test_thousands_of_trees_are_exported(tmp_path: Path) -> None:
    booster = grow({"max_depth": 3, "learning_rate": 0.01, "objective": "reg:squarederror"}, 1, 3000, 4, 0.1)
    features = rows_at_the_edges(booster, 1)
    np.testing.assert_array_equal(scores_by_onnx(booster, features, tmp_path), booster.inplace_predict(features))


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"booster": "dart"}, "dart"),
        ({"booster": "gblinear"}, "gblinear"),
        ({"objective": "binary:logistic"}, "binary:logistic"),
        ({"objective": "count:poisson"}, "count:poisson"),
    ],
)
def test_what_has_no_exact_counterpart_is_refused_by_name(parameters: dict[str, Any], name: str) -> None:
    matrix = xgboost.DMatrix(np.eye(4), np.array([0, 1, 0, 1]))
    with pytest.raises(InputError, match=name):
        export_trees(xgboost.train(parameters, matrix, 2))


def test_several_outputs_are_refused() -> None:
    matrix = xgboost.DMatrix(np.eye(4), np.eye(4)[:, :2])
    for strategy in ("multi_output_tree", "one_output_per_tree"):
        with pytest.raises(InputError, match="one output"):
            export_trees(xgboost.train({"multi_strategy": strategy}, matrix, 2))


def test_splits_on_categories_are_refused() -> None:
    matrix = xgboost.DMatrix(
        np.arange(8.0)[:, None] % 4, np.arange(8) % 4, feature_types=["c"], enable_categorical=True
    )
    with pytest.raises(InputError, match="categories"):
        export_trees(xgboost.train({"max_cat_to_onehot": 1, "min_child_weight": 0}, matrix, 2))

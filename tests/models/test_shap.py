import numpy as np
import onnx
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError
from models.shap import Explainer
from models.trees import Trees
from tests.bundles import tiny_bundle
from tests.tree_bundle import grow, rows
from training.trees import export_trees


def explainer(directory, model) -> Explainer:
    onnx.save_model(model, str(directory / "model.onnx"))
    return Explainer.open(directory / "model.onnx", "m/1")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    n_trees=st.integers(1, 10),
    depth=st.integers(1, 7),
    base_score=st.sampled_from([None, 0.0, -3.5]),
    n_features=st.sampled_from([2, 5]),
)
def test_contributions_are_those_of_xgboost_and_add_up(tmp_path_factory, seed, n_trees, depth, base_score, n_features):
    parameters = {"max_depth": depth, **({} if base_score is None else {"base_score": base_score})}
    booster = grow(n_trees, seed, n_features, **parameters)
    found = explainer(tmp_path_factory.mktemp("shap"), export_trees(booster))
    features = rows(30, seed + 1, n_features)
    features[0] = np.nan
    expected = booster.predict(xgboost.DMatrix(features), pred_contribs=True)
    contributions = found.contributions(features)
    assert contributions == pytest.approx(expected[:, :-1], abs=2e-5)
    assert found.base == pytest.approx(expected[0, -1], abs=1e-5)
    scores = booster.inplace_predict(features)
    assert contributions.sum(axis=1) + found.base == pytest.approx(scores, abs=1e-5)


def test_a_tree_of_two_features_by_hand():
    # x0 < 0 (4 of 10 rows): 1, otherwise x1 < 0 (2 of 6 rows): 2, else 5.
    trees = Trees(
        n_features=2,
        roots=np.array([0, 5]),
        features=np.array([0, 0, 1, 0, 0]),
        thresholds=np.zeros(5, np.float32),
        left=np.array([1, -1, 3, -1, -1]),
        right=np.array([2, -1, 4, -1, -1]),
        missing_left=np.array([True, False, False, False, False]),
        weights=np.array([0, 1, 0, 2, 5], np.float32),
        covers=np.array([10, 4, 6, 2, 4], np.float32),
    )
    found = Explainer(trees)
    # Nothing known: 0.4 x 1 + 0.6 x (2/6 x 2 + 4/6 x 5) = 2.8.
    assert found.base == pytest.approx(2.8)
    # Both are 1, so 5. x0 known alone: 4; x1 known alone: 0.4 + 0.6 x 5 = 3.4.
    # x0: half of (4 - 2.8) and of (5 - 3.4) is 1.4; x1: half of (3.4 - 2.8) and of (5 - 4) is 0.8.
    assert found.contributions(np.array([[1, 1]], np.float32))[0] == pytest.approx([1.4, 0.8])
    # A missing x0 goes left, as -1 does: 1 whatever x1 is; x1 known alone: 0.4 + 0.6 x 2 = 1.6.
    # x0: half of (1 - 2.8) and of (1 - 1.6) is -1.2; x1: half of (1.6 - 2.8) and of (1 - 1) is -0.6.
    for x0 in (-1, np.nan):
        assert found.contributions(np.array([[x0, -1]], np.float32))[0] == pytest.approx([-1.2, -0.6])


def test_trees_without_branches_have_no_contributions(tmp_path):
    booster = grow(3, gamma=1e9)
    found = explainer(tmp_path, export_trees(booster))
    assert not found.contributions(rows(4)).any()
    assert found.base == pytest.approx(booster.inplace_predict(rows(1))[0])


def test_a_model_without_trees_is_refused(tmp_path):
    with pytest.raises(InputError, match="need a model of trees, m/1 is none"):
        Explainer.open(tiny_bundle(tmp_path, "ranking").path / "model.onnx", "m/1")


def test_trees_that_do_not_know_their_training_rows_are_refused(tmp_path):
    model = export_trees(grow(2))
    node = model.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name != "nodes_hitrates"]
    del node.attribute[:]
    node.attribute.extend(kept)
    with pytest.raises(InputError, match="m/1 was exported without; train it again"):
        explainer(tmp_path, model)

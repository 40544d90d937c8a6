"""Exact export of XGBoost's trees to ONNX: node by node from XGBoost's own JSON, nothing rounded, nothing reordered.

Written as TreeEnsembleRegressor of ai.onnx.ml 3: ONNX Runtime 1.32 runs TreeEnsemble of ai.onnx.ml 5 no faster (300
trees of depth 6, 1 to 1,000 documents: 0 to 7 % slower, side by side), and the older operator asks less of a server.
Legend: I a node of some tree, L a leaf.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import xgboost
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from models.errors import InputError

OBJECTIVES = ("rank:ndcg", "rank:pairwise", "rank:map", "reg:squarederror")
"""Those whose answer is the sum of the leaves itself, without a link function."""

# Older than what this ONNX writes by default: nothing newer is needed, and servers lag behind.
_OPSETS = {"": 17, "ai.onnx.ml": 3}
_IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class _Tree:
    """The nodes that one tree's root reaches, as columns [I]; `values` is a leaf's weight, elsewhere the threshold.

    covers: sum of the second derivatives of the training rows that came to a node.
    """

    ids: NDArray[np.int64]
    is_leaf: NDArray[np.bool_]
    features: NDArray[np.int64]
    values: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.int64]
    covers: NDArray[np.float32]


def export_trees(booster: xgboost.Booster) -> onnx.ModelProto:
    """Write a booster as ONNX: `features` [D, F] float32, missing as NaN, to `score` [D] float32.

    Trees after `best_iteration`, where the booster has one, are left out. XGBoost starts its float32 sum with the base
    score and adds the trees in order; so the base score is the first tree here, a single leaf. On one thread ONNX
    Runtime then adds in the same order and gives XGBoost's own bits; on more threads it adds partial sums, which
    differ in the last places (at most 7e-6 measured on 300 trees). InputError names what has no exact counterpart:
    categorical splits, dart, gblinear, several outputs, objectives with a link function.
    """
    learner = json.loads(booster.save_raw("json"))["learner"]
    _refuse_inexact(learner)
    parameters = learner["learner_model_param"]
    base_score = float(np.ravel(json.loads(parameters["base_score"]))[0])
    trees = [_leaf(base_score), *(_tree(tree) for tree in _best_trees(learner))]
    n_features = int(parameters["num_feature"])
    graph = helper.make_graph(
        [_ensemble(trees), helper.make_node("Squeeze", ["sums", "axis"], ["score"])],
        "trees",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["documents", n_features])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["documents"])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
    return helper.make_model(graph, producer_name="rankyard", opset_imports=opsets, ir_version=_IR_VERSION)


def _refuse_inexact(learner: Mapping[str, Any]) -> None:
    booster, objective = learner["gradient_booster"]["name"], learner["objective"]["name"]
    if booster != "gbtree":
        raise InputError(f"only the booster gbtree can be exported exactly, got {booster}; train with booster gbtree")
    if objective not in OBJECTIVES:
        raise InputError(
            f"the objective must be one of {', '.join(OBJECTIVES)} to be exported exactly, got {objective}; "
            "train with one of them"
        )
    n_outputs = int(learner["learner_model_param"]["num_target"])
    if n_outputs > 1:
        raise InputError(f"a booster must have one output to be exported, got {n_outputs}; train one a target")


def _best_trees(learner: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    model = learner["gradient_booster"]["model"]
    trees: Sequence[Mapping[str, Any]] = model["trees"]
    best_iteration = learner["attributes"].get("best_iteration")
    if best_iteration is None:
        return trees
    # An iteration may have grown several trees (num_parallel_tree).
    return trees[: model["iteration_indptr"][int(best_iteration) + 1]]


def _tree(tree: Mapping[str, Any]) -> _Tree:
    if any(tree["split_type"]):
        raise InputError(
            "splits on categories cannot be exported exactly, the booster has some; give categories as numbers"
        )
    left_I, right_I = (np.array(tree[side], dtype=np.int64) for side in ("left_children", "right_children"))
    ids_I = _reached(left_I, right_I)
    # Numbered without gaps: ONNX Runtime refuses an id beyond the number of nodes.
    return _Tree(
        ids=np.arange(len(ids_I)),
        is_leaf=left_I[ids_I] < 0,
        features=np.array(tree["split_indices"], dtype=np.int64)[ids_I],
        values=np.array(tree["split_conditions"], dtype=np.float32)[ids_I],
        left=np.searchsorted(ids_I, left_I[ids_I]),
        right=np.searchsorted(ids_I, right_I[ids_I]),
        missing_left=np.array(tree["default_left"], dtype=np.int64)[ids_I],
        covers=np.array(tree["sum_hessian"], dtype=np.float32)[ids_I],
    )


def _leaf(weight: float) -> _Tree:
    zero, no_child = np.zeros(1, dtype=np.int64), np.full(1, -1)
    weight_I = np.array([weight], dtype=np.float32)
    return _Tree(zero, np.ones(1, dtype=np.bool_), zero, weight_I, no_child, no_child, zero, np.ones_like(weight_I))


def _reached(left_I: NDArray[np.int64], right_I: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ids of the nodes below the root, level by level: pruning leaves deleted nodes in their places."""
    levels = [np.zeros(1, dtype=np.int64)]
    while len(levels[-1]):
        inner = levels[-1][left_I[levels[-1]] >= 0]
        levels.append(np.concatenate([left_I[inner], right_I[inner]]))
    return np.sort(np.concatenate(levels))


def _ensemble(trees: Sequence[_Tree]) -> NodeProto:
    tree_ids_I = np.repeat(np.arange(len(trees)), [len(tree.ids) for tree in trees])
    is_leaf_I = np.concatenate([tree.is_leaf for tree in trees])
    ids_I = np.concatenate([tree.ids for tree in trees])
    values_I = np.concatenate([tree.values for tree in trees])

    def inner(parts: list[NDArray[np.int64]]) -> list[int]:
        return cast("list[int]", np.where(is_leaf_I, 0, np.concatenate(parts)).tolist())

    return helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["sums"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=tree_ids_I.tolist(),
        nodes_nodeids=ids_I.tolist(),
        # Strictly less: XGBoost goes left where x < threshold.
        nodes_modes=np.where(is_leaf_I, "LEAF", "BRANCH_LT").tolist(),
        nodes_featureids=inner([tree.features for tree in trees]),
        nodes_values=np.where(is_leaf_I, np.float32(0), values_I).tolist(),
        nodes_truenodeids=inner([tree.left for tree in trees]),
        nodes_falsenodeids=inner([tree.right for tree in trees]),
        # Nothing is scored by it; what explains scores needs to know how many rows came by.
        nodes_hitrates=np.concatenate([tree.covers for tree in trees]).tolist(),
        nodes_missing_value_tracks_true=inner([tree.missing_left for tree in trees]),
        target_treeids=tree_ids_I[is_leaf_I].tolist(),
        target_nodeids=ids_I[is_leaf_I].tolist(),
        target_ids=[0] * int(is_leaf_I.sum()),
        target_weights=values_I[is_leaf_I].tolist(),
    )

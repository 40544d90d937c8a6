"""XGBoost's trees as LightGBM's text file, which is all that lleaves reads.

XGBoost goes left where x < t, LightGBM where x <= t: of a float32 x, x < t is x <= the float32 before t.
https://github.com/siboehm/lleaves/blob/master/lleaves/compiler/ast/scanner.py
"""

from __future__ import annotations

from typing import Any

import numpy as np

_DEFAULT_LEFT, _MISSING_IS_NAN = 2, 8


def lightgbm_text(model: dict[str, Any]) -> str:
    """Write XGBoost's JSON of a booster of numeric splits."""
    learner = model["learner"]
    n_features = int(learner["learner_model_param"]["num_feature"])
    base_score = float(
        np.ravel(np.array(learner["learner_model_param"]["base_score"].strip("[]"), dtype=np.float32))[0]
    )
    head = [
        "tree",
        "version=v4",
        "num_class=1",
        "num_tree_per_iteration=1",
        "label_index=0",
        f"max_feature_idx={n_features - 1}",
        "objective=regression",
        f"feature_names={' '.join(f'f{i}' for i in range(n_features))}",
        f"feature_infos={' '.join(['[0:1]'] * n_features)}",
    ]
    trees = [_tree(number, tree) for number, tree in enumerate(learner["gradient_booster"]["model"]["trees"])]
    trees.append(_block(len(trees), [0], [0.5], [_MISSING_IS_NAN], [-1], [-2], [base_score, base_score]))
    head.append(f"tree_sizes={' '.join(str(len(tree)) for tree in trees)}")
    return "\n".join([*head, "", *trees, "end of trees", "", "pandas_categorical:null", ""])


def _tree(number: int, tree: dict[str, Any]) -> str:
    """Number branches and leaves apart: branch i is i, leaf j is -(j + 1)."""
    is_leaf = [left == -1 for left in tree["left_children"]]
    places, n_leaves, n_branches = [], 0, 0
    for leaf in is_leaf:
        if leaf:
            n_leaves += 1
            places.append(-n_leaves)
        else:
            places.append(n_branches)
            n_branches += 1
    branches = [node for node, leaf in enumerate(is_leaf) if not leaf]
    values = [float(np.float32(tree["split_conditions"][node])) for node, leaf in enumerate(is_leaf) if leaf]
    if not branches:
        return _block(number, [0], [0.5], [_MISSING_IS_NAN], [-1], [-2], [values[0], values[0]])
    thresholds = [
        float(np.nextafter(np.float32(tree["split_conditions"][node]), np.float32(-np.inf))) for node in branches
    ]
    return _block(
        number,
        [tree["split_indices"][node] for node in branches],
        thresholds,
        [_MISSING_IS_NAN + _DEFAULT_LEFT * bool(tree["default_left"][node]) for node in branches],
        [places[tree["left_children"][node]] for node in branches],
        [places[tree["right_children"][node]] for node in branches],
        values,
    )


def _block(
    number: int,
    features: list[int],
    thresholds: list[float],
    kinds: list[int],
    left: list[int],
    right: list[int],
    leaves: list[float],
) -> str:
    columns: dict[str, list[Any]] = {
        "split_feature": features,
        "threshold": thresholds,
        "decision_type": kinds,
        "left_child": left,
        "right_child": right,
        "leaf_value": leaves,
    }
    lines = [f"Tree={number}", f"num_leaves={len(leaves)}", "num_cat=0"]
    lines += [f"{name}={' '.join(map(repr, values))}" for name, values in columns.items()]
    return "\n".join([*lines, ""])

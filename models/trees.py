"""Regression trees as columns of nodes, read out of a bundle's `model.onnx`: what explains and what scores them.

Legend: I a node of some tree, T a tree, L a leaf.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import protobuf

# Field numbers of onnx.proto.
_GRAPH, _NODE, _INPUT = 7, 1, 11
_OP_TYPE, _ATTRIBUTE = 4, 5
_NAME, _FLOATS, _INTS, _STRINGS = 1, 7, 8, 9
_SHAPE = (2, 1, 2, 1)
"""From a graph's input to the sizes of its shape: its type, of a tensor, its shape, its dimensions."""

_MODE = re.compile(rb"\x4a(?:\x04(LEAF)|\x09(BRANCH_LT)|.[A-Z_]+)")


@dataclass(frozen=True, slots=True)
class Trees:
    """An ensemble whose score is the float32 sum of one leaf a tree, in the order of the trees, from 0.

    roots [T + 1]: where each tree's nodes begin, and their number in all; a tree's first node is its root.
    features, thresholds [I]: a branch goes left where x < threshold. left, right [I]: numbers of the children among all
    nodes, -1 of a leaf. missing_left [I]: whether NaN goes left. weights [I]: a leaf's part of the score.
    covers [I]: sum of the second derivatives (or the number) of the training rows that came to a node; None where the
    bundle does not say.
    """

    n_features: int
    roots: NDArray[np.int64]
    features: NDArray[np.int64]
    thresholds: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.bool_]
    weights: NDArray[np.float32]
    covers: NDArray[np.float32] | None

    @property
    def is_leaf(self) -> NDArray[np.bool_]:
        """Whether a node is a leaf [I]."""
        return self.left < 0


def read_trees(model_file: Path) -> Trees | None:
    """Read the trees of a model that is nothing but an ensemble as `rankyard train` exports it; None for another one.

    That is: one TreeEnsembleRegressor of one target, that goes left where x < threshold and adds up the leaves, then
    one Squeeze.
    """
    try:
        graph = _only(model_file.read_bytes(), _GRAPH)
        nodes = [value for number, _, value in protobuf.fields(graph) if number == _NODE]
        operators = [_only(node, _OP_TYPE) for node in nodes]
        if operators != [b"TreeEnsembleRegressor", b"Squeeze"]:
            return None
        attributes = {}
        for number, _, value in protobuf.fields(nodes[0]):
            if number == _ATTRIBUTE:
                attributes[_only(value, _NAME).decode()] = value
        return _trees(attributes, _n_features(_only(graph, _INPUT)))
    except (ValueError, KeyError, IndexError, StopIteration):
        return None


def _trees(attributes: dict[str, bytes], n_features: int) -> Trees | None:
    if not attributes.keys().isdisjoint({"base_values", "post_transform", "aggregate_function"}):
        return None
    modes = [leaf or branch for leaf, branch in _MODE.findall(attributes["nodes_modes"])]
    is_leaf = np.array([mode == b"LEAF" for mode in modes])
    if any(mode not in (b"LEAF", b"BRANCH_LT") for mode in modes):
        return None
    tree_ids, ids, features, left, right, missing = (
        protobuf.integers(attributes[f"nodes_{name}"], _INTS)
        for name in (
            "treeids",
            "nodeids",
            "featureids",
            "truenodeids",
            "falsenodeids",
            "missing_value_tracks_true",
        )
    )
    roots = np.flatnonzero(np.diff(tree_ids, prepend=-1))
    sizes = np.diff(np.append(roots, len(ids)))
    # As they are exported: tree by tree, each numbered from 0 without gaps.
    if not np.array_equal(ids, np.arange(len(ids)) - np.repeat(roots, sizes)) or len(is_leaf) != len(ids):
        return None
    first = np.repeat(roots, sizes)
    weights = np.zeros(len(ids), np.float32)
    targets = roots[protobuf.integers(attributes["target_treeids"], _INTS)]
    weights[targets + protobuf.integers(attributes["target_nodeids"], _INTS)] = protobuf.floats(
        attributes["target_weights"], _FLOATS
    )
    rates = attributes.get("nodes_hitrates")
    return Trees(
        n_features=n_features,
        roots=np.append(roots, len(ids)),
        features=features,
        thresholds=protobuf.floats(attributes["nodes_values"], _FLOATS),
        left=np.where(is_leaf, -1, first + left),
        right=np.where(is_leaf, -1, first + right),
        missing_left=missing.astype(bool),
        weights=weights,
        covers=None if rates is None else protobuf.floats(rates, _FLOATS),
    )


def _n_features(value: bytes) -> int:
    """Last size of the first input's shape."""
    for number in _SHAPE[:-1]:
        value = _only(value, number)
    sizes = [size for number, _, size in protobuf.fields(value) if number == _SHAPE[-1]]
    return int(next(size for number, _, size in protobuf.fields(sizes[-1]) if number == 1))


def _only(message: bytes, number: int) -> bytes:
    """Give the first field of this number; what stands behind it is not looked at."""
    for found, _, value in protobuf.fields(message):
        if found == number and isinstance(value, bytes):
            return value
    raise KeyError(number)

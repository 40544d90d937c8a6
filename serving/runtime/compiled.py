"""Trees walked by a loop of our own that numba compiles, where the package is installed beside the gateway.

A walk down a tree waits for memory at every node; the walks of several rows, side by side, wait together.
Legend: D documents, F features, I nodes, T trees.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.errors import RankyardError
from models.trees import Trees

_LANES = 32
"""Rows that go down a tree together."""
_NODE = np.dtype([("value", "f4"), ("column", "u2"), ("child", "u2")])
"""Eight bytes, so that a step reads memory once.

value: a branch's threshold, a leaf's part of the score. column: of the row as it is walked. child: how many nodes
further on the left child is, with the right one behind it; 0 of a leaf.
"""
_MOST = np.iinfo(np.uint16).max


class CompiledScorer:
    """Scores trees in float32, tree by tree in their order, on the calling thread; several threads may call at once."""

    name = "numba"

    def __init__(self, trees: Trees) -> None:
        self._n_features = trees.n_features
        self._nodes, self._roots, self._depths = _laid_out(trees)
        self._walk = _compiled()

    @staticmethod
    def is_installed() -> bool:
        """Whether numba is there to be loaded."""
        return importlib.util.find_spec("numba") is not None

    def run(self, arrays: Arrays) -> dict[str, NDArray[np.generic]]:
        """As a session does: `score` [D] of `features` [D, F] float32, missing as NaN."""
        features_DF = np.require(arrays["features"], np.float32, ("C_CONTIGUOUS", "ALIGNED"))
        if features_DF.shape[1:] != (self._n_features,):
            raise RankyardError(
                f"candidates must have {self._n_features} features each, got the shape {features_DF.shape}"
            )
        score_D = np.zeros(len(features_DF), np.float32)
        self._walk(features_DF, self._nodes, self._roots, self._depths, score_D)
        return {"score": score_D}


def _laid_out(trees: Trees) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64]]:
    """Nodes [I], one tree after the other, each level by level; where each tree begins [T], and how deep it is [T]."""
    if not np.isfinite(np.where(trees.is_leaf, trees.weights, trees.thresholds)).all():
        raise RankyardError("thresholds and leaves of trees must be finite to be walked")
    roots = trees.roots[:-1]
    tree_I = np.repeat(np.arange(len(roots)), np.diff(trees.roots))
    depths = np.zeros(len(roots), np.int64)
    levels = [roots]
    while len(branches := levels[-1][~trees.is_leaf[levels[-1]]]):
        levels.append(np.stack([trees.left[branches], trees.right[branches]], axis=1).ravel())
        depths[tree_I[levels[-1]]] = len(levels) - 1
    order_I = np.concatenate(levels)
    order_I = order_I[tree_I[order_I].argsort(kind="stable")]
    place_I = np.empty(len(order_I), np.int64)
    place_I[order_I] = np.arange(len(order_I))
    children = np.where(trees.is_leaf, 0, place_I[trees.left] - place_I)
    # Each feature is two columns of a row, which differ where it is missing; a leaf reads one of its own.
    columns = np.where(trees.is_leaf, 2 * trees.n_features, 2 * trees.features + trees.missing_left)
    if max(children.max(), 2 * trees.n_features) > _MOST:
        raise RankyardError(f"trees must have at most {_MOST} nodes each and {_MOST // 2} features to be walked")
    nodes = np.empty(len(order_I), _NODE)
    nodes["value"] = np.where(trees.is_leaf, trees.weights, trees.thresholds)[order_I]
    nodes["column"] = columns[order_I]
    nodes["child"] = children[order_I]
    return nodes, place_I[roots], depths


def _walk(
    features_DF: NDArray[np.float32],
    nodes_I: NDArray[Any],
    roots_T: NDArray[np.int64],
    depths_T: NDArray[np.int64],
    score_D: NDArray[np.float32],
) -> None:
    """Add to each document's score its leaf of every tree."""
    n_documents, n_features = features_DF.shape
    n_columns = 2 * n_features + 1
    cells = np.empty(_LANES * n_columns, np.float32)
    places = np.empty(_LANES, np.int32)
    for first in range(0, n_documents, _LANES):
        n_rows = min(_LANES, n_documents - first)
        for row in range(n_rows):
            for feature in range(n_features):
                value = features_DF[first + row, feature]
                # A branch goes right where a value is at least its threshold: a missing one by the column that is read.
                cells[row * n_columns + 2 * feature] = np.float32(np.inf) if np.isnan(value) else value
                cells[row * n_columns + 2 * feature + 1] = np.float32(-np.inf) if np.isnan(value) else value
            cells[row * n_columns + n_columns - 1] = np.float32(-np.inf)
        for tree in range(len(roots_T)):
            for row in range(n_rows):
                places[row] = roots_T[tree]
            for _ in range(depths_T[tree]):
                for row in range(n_rows):
                    node = nodes_I[places[row]]
                    # At a leaf a step of 0.
                    places[row] += node.child + (cells[row * n_columns + node.column] >= node.value)
            for row in range(n_rows):
                score_D[first + row] += nodes_I[places[row]].value


@cache
def _compiled() -> Callable[..., None]:
    """The walk as machine code, kept beside this file or in the user's cache where one of them can be written.

    RankyardError where numba does not go with the other packages.
    """
    try:
        import numba  # takes 90 MB: only where there are trees
    except ImportError as error:
        raise RankyardError(f"numba cannot be loaded: {error}") from error
    node = numba.from_dtype(_NODE)
    # A request's body is read-only.
    features = numba.types.Array(numba.float32, 2, "C", readonly=True)
    signature = numba.void(features, node[::1], numba.int64[::1], numba.int64[::1], numba.float32[::1])
    try:
        walk: Callable[..., None] = numba.njit(signature, nogil=True, cache=True)(_walk)
    except RuntimeError:  # nowhere to keep it
        walk = numba.njit(signature, nogil=True)(_walk)
    return walk

"""Features relative to the list they stand in, by the same function in training and in the gateway.

Shapes: D candidates of a list, R features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SUFFIX = "_in_list"


def relative_name(name: str) -> str:
    """The name of a feature's place in the list."""
    return name + SUFFIX


def places_in_list(features_DR: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each value, the share of the list's known values of its feature that are lower, level ones counted half.

    From 1 / 2n for the only lowest of n known values to 1 - 1 / 2n for the only highest, and 0.5 where all are level or
    nothing else is known: the mid-rank, which says nothing of the order that candidates came in. NaN stays NaN and
    counts for nothing.
    """
    n, n_features = features_DR.shape
    if not n or not n_features:
        return np.empty((n, n_features), dtype=np.float32)
    # A feature a row: its values lie side by side for the sort.
    features_RD = np.ascontiguousarray(features_DR.T)
    order_RD = np.argsort(features_RD, axis=1)  # NaN comes last
    sorted_RD = np.take_along_axis(features_RD, order_RD, axis=1)
    columns_D = np.arange(n, dtype=np.int32)
    is_new_RD = np.ones((n_features, n + 1), dtype=bool)
    is_new_RD[:, 1:-1] = sorted_RD[:, 1:] != sorted_RD[:, :-1]
    # Of each run of level values, where it begins, and where the next one does.
    begin_RD = np.maximum.accumulate(np.where(is_new_RD[:, :-1], columns_D, 0), axis=1)
    end_RD = np.minimum.accumulate(np.where(is_new_RD[:, 1:], columns_D + 1, n)[:, ::-1], axis=1)[:, ::-1]
    is_known_RD = ~np.isnan(sorted_RD)
    n_known_R1 = np.maximum(is_known_RD.sum(axis=1, keepdims=True), 1)
    shares_RD = ((begin_RD + end_RD) / (2 * n_known_R1)).astype(np.float32)
    shares_RD[~is_known_RD] = np.nan
    places_RD = np.empty((n_features, n), dtype=np.float32)
    np.put_along_axis(places_RD, order_RD, shares_RD, axis=1)
    return places_RD.T

"""NDCG@10 of one score over many lists at once, ties counted as they fall on average.

The metric of the product lets equal scores keep the order of the file; here a feature of few values must not win by it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_K = 10


def expected_ndcg(scores_N: NDArray[np.floating], labels_N: NDArray[np.float32], lists_N: NDArray[np.int64]) -> float:
    """Mean over lists with a relevant document of the NDCG@10 that a random order within ties has on average.

    E[DCG] = sum over groups of equal scores of (mean gain of the group) x (sum of its ranks' discounts) (McSherry and
    Najork 2008, "Computing information retrieval performance measures efficiently in the presence of tied scores",
    section 2.2); gain 2^label - 1, discount 1 / log2(rank + 1). lists_N: list numbers that do not fall. NaN scores come
    last; NaN where no list has a relevant document.
    """
    gains_N = np.exp2(labels_N.astype(np.float64)) - 1
    starts_L = np.flatnonzero(np.concatenate([[True], lists_N[1:] != lists_N[:-1]]))
    ranks_N = np.arange(len(labels_N)) - np.repeat(starts_L, np.diff([*starts_L, len(labels_N)]))
    discounts_N = np.where(ranks_N < _K, 1 / np.log2(ranks_N + 2), 0.0)

    ideal_L = np.add.reduceat(gains_N[np.lexsort((-gains_N, lists_N))] * discounts_N, starts_L)
    keys_N = -np.where(np.isnan(scores_N), -np.inf, scores_N.astype(np.float64))
    order = np.lexsort((keys_N, lists_N))
    is_first = np.concatenate([[True], (np.diff(lists_N[order]) != 0) | (keys_N[order][1:] != keys_N[order][:-1])])
    groups_G = np.flatnonzero(is_first)
    sizes_G = np.diff([*groups_G, len(order)])
    means_G = np.add.reduceat(gains_N[order], groups_G) / sizes_G
    dcg_L = np.add.reduceat(np.repeat(means_G, sizes_G) * discounts_N, starts_L)
    has_relevant_L = ideal_L > 0
    return float(np.mean(dcg_L[has_relevant_L] / ideal_L[has_relevant_L])) if has_relevant_L.any() else float("nan")

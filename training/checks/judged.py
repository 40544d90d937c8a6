"""Judged lists as one matrix that every check of rankings reads: whole lists, at most so many documents of them.

Shapes: N documents of the lists taken, F features, D documents of one list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.lexical import LEXICAL_NAMES, Corpus, lexical_features, read
from models.ranking import RankRequest
from training.data.splits import RankingRows

MAX_DOCUMENTS = 30_000
"""Documents of a split that are looked at, in a random part of a larger split's lists."""


@dataclass(frozen=True)
class Judged:
    """Features [N, F] NaN where missing, relevance [N], and the list of each document [N], counted from 0.

    chosen: which of the split's lists were taken, in order. is_whole: whether those are all of them.
    """

    names: tuple[str, ...]
    features: NDArray[np.float32]
    labels: NDArray[np.float32]
    lists: NDArray[np.int64]
    chosen: NDArray[np.int64]
    is_whole: bool

    @property
    def seen(self) -> str:
        """What a sentence must say where only a part was looked at."""
        return "" if self.is_whole else f" (of {len(self.labels):,} documents looked at)"


def judged(rows: RankingRows, names: tuple[str, ...], seed: int) -> Judged:
    """Take whole lists up to MAX_DOCUMENTS, at random where that is not all, with the features `names`."""
    chosen = _choose(rows, seed)
    features_NF = np.concatenate([_matrix(rows.lists[row], names) for row in chosen])
    labels_N = np.concatenate([rows.labels[row] for row in chosen])
    lists_N = np.repeat(np.arange(len(chosen)), [len(rows.labels[row]) for row in chosen])
    return Judged(names, features_NF, labels_N, lists_N, chosen, len(chosen) == len(rows))


def with_lexical(data: Judged, rows: RankingRows) -> Judged:
    """Add what words of the query stand where in the titles, where the lists have both."""
    requests = [rows.lists[row] for row in data.chosen]
    if any(request.texts is None or not request.text for request in requests):
        return data
    readings = {title: read(title) for request in requests for title in request.texts or ()}
    corpus = Corpus.of(readings.values())
    lexical_NF = np.concatenate(
        [
            lexical_features(read(request.text), [readings[title] for title in request.texts or ()], corpus)
            for request in requests
        ]
    )
    features_NF = np.concatenate([data.features, lexical_NF], axis=1)
    return Judged((*data.names, *LEXICAL_NAMES), features_NF, data.labels, data.lists, data.chosen, data.is_whole)


def _choose(rows: RankingRows, seed: int) -> NDArray[np.int64]:
    sizes = np.array([len(labels_D) for labels_D in rows.labels])
    if sizes.sum() <= MAX_DOCUMENTS:
        return np.arange(len(rows))
    order = np.random.default_rng(seed).permutation(len(rows))
    n_taken = max(int(np.searchsorted(np.cumsum(sizes[order]), MAX_DOCUMENTS, side="right")), 1)
    return np.sort(order[:n_taken])


def _matrix(request: RankRequest, names: tuple[str, ...]) -> NDArray[np.float32]:
    matrix_DF = np.full((len(request.ids), len(names)), np.nan, dtype=np.float32)
    for column, name in enumerate(names):
        if name in request.features:
            matrix_DF[:, column] = request.features[name]
        elif name in request.query_features:
            matrix_DF[:, column] = request.query_features[name]
    return matrix_DF

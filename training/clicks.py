"""What clicks say of relevance once their position is accounted for: propensities, and labels to learn a ranking from.

The model of a click is the position-based one (Richardson et al., WWW 2007; Joachims et al., WSDM 2017, eq. 5):

    P(click on document d of query q at position k) = p_k r_qd

p_k is the propensity, the chance that a customer looks at position k, here relative to that of position 1; r_qd is
the chance of a click once looked at.
Shapes: K positions, P pairs of query and document, M pairs at a position where they were shown, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xgboost
from numpy.typing import NDArray

from models.errors import ConfigError, DataError
from training.config import ClicksTraining, RankingTraining
from training.data.lists import matrix
from training.data.splits import Impressions, RankingRows, Splits

Floats = NDArray[np.float64]

_LEAST_PROPENSITY = 0.01
"""A click counts at most a hundred times: what is hardly ever looked at must not decide alone (Strehl et al. 2010)."""

_HIGHEST_GAIN = 15.0
"""Gain of the documents clicked most, that of grade 4: labels of clicks and of judges are of one size."""
_HIGHEST_QUANTILE = 0.99

_BEND_CLICKS = 100.0

_EM_STEPS = 100
_EM_TOLERANCE = 1e-4
_EM_TREES = 10


def judged_by_clicks(splits: Splits[RankingRows], training: ClicksTraining) -> Splits[RankingRows]:
    """Give the splits with labels from clicks where a file is a click log, and notes of how they came about.

    Propensities come from train, or from the first split that is a log, and hold for the others too. ConfigError where
    a setting is for click logs and train is none.
    """
    named = splits.named()
    logs = {name: rows for name, rows in named.items() if rows.clicks is not None}
    if "train" not in logs and (training.debias is not None or training.propensity is not None):
        raise ConfigError(
            f"training.debias and training.propensity are for click logs, {splits.train.file} is judged; "
            "leave them out, or train on rows with position and clicked",
            field="training.debias",
        )
    if not logs:
        return splits
    propensities_K = propensities(next(iter(logs.values())), training)
    notes = [*splits.notes]
    for name, rows in logs.items():
        named[name] = labelled(rows, propensities_K)
        notes.append(_note(named[name], training))
    return Splits(named["train"], named["valid"], named.get("test"), tuple(notes))


def propensities(rows: RankingRows, training: ClicksTraining) -> Floats:
    """The chances [K] that positions are looked at, as `debias` and `propensity` want them; 1 for position 1."""
    counts = _counts(rows)
    if training.debias == "none":
        return np.ones(counts.n_positions)
    if isinstance(training.propensity, tuple):
        return np.array(training.propensity) / training.propensity[0]
    if training.propensity == "intervention":
        return by_intervention(counts)
    features_PF = matrix(rows, rows.feature_names) if rows.feature_names else None
    n_threads = training.n_threads if isinstance(training, RankingTraining) else 0
    return by_em(counts, features_PF, training.seed, n_threads)


def labelled(rows: RankingRows, propensities_K: Floats) -> RankingRows:
    """The rows of a click log with labels log2(1 + gain), so that a document's gain 2^label - 1 is its relevance.

    Gains are relevances (see `relevance`) times 15 over the 0.99 quantile of those of clicked documents, at most 15.
    """
    counts = _counts(rows)
    # What stands below the positions that are known is looked at as often as the last of them.
    last = np.full(max(counts.n_positions - len(propensities_K), 0), propensities_K[-1])
    relevance_P = relevance(counts, np.concatenate([propensities_K, last]))
    clicked = relevance_P[counts.by_pair(counts.clicked) > 0]
    if not len(clicked):
        raise DataError(f"{rows.file} must have clicks to learn from, none of its rows was clicked")
    gains_P = np.minimum(relevance_P / np.quantile(clicked, _HIGHEST_QUANTILE), 1) * _HIGHEST_GAIN
    labels_P = np.log2(1 + gains_P).astype(np.float32)
    ends = np.cumsum([len(labels_D) for labels_D in rows.labels])[:-1]
    return replace(rows, labels=tuple(np.split(labels_P, ends)), propensities=tuple(propensities_K.tolist()))


@dataclass(frozen=True)
class Counts:
    """How often each pair was shown at each position [M], counted from 0, and how often clicked there."""

    pairs: NDArray[np.int64]
    positions: NDArray[np.int64]
    shown: Floats
    clicked: Floats
    n_pairs: int

    @classmethod
    def of(cls, lists: Sequence[Impressions], n_documents: Sequence[int]) -> Counts:
        """Count over the log; pairs are numbered along the lists' documents."""
        starts = np.cumsum([0, *n_documents])
        pairs = np.concatenate([one.documents + start for one, start in zip(lists, starts[:-1], strict=True)])
        positions = np.concatenate([one.positions for one in lists]) - 1
        clicked = np.concatenate([one.clicked for one in lists])
        n_positions = int(positions.max()) + 1
        keys, inverse = np.unique(pairs * n_positions + positions, return_inverse=True)
        return cls(
            keys // n_positions,
            keys % n_positions,
            np.bincount(inverse).astype(np.float64),
            np.bincount(inverse, weights=clicked).astype(np.float64),
            int(starts[-1]),
        )

    @property
    def n_positions(self) -> int:
        """K, the last position that anything was shown at."""
        return int(self.positions.max()) + 1

    def by_pair(self, values_M: Floats) -> Floats:
        """Sums [P]."""
        return np.bincount(self.pairs, weights=values_M, minlength=self.n_pairs).astype(np.float64)

    def by_position(self, values_M: Floats) -> Floats:
        """Sums [K]."""
        return np.bincount(self.positions, weights=values_M, minlength=self.n_positions).astype(np.float64)


def relevance(counts: Counts, propensities_K: Floats) -> Floats:
    """The chance r [P] of a click once looked at: clicks over the looks that the propensities expect.

    r_qd = (sum of clicks + m) / (sum over impressions of p_k + 1), m the mean of r: as if each pair had been looked at
    once more, with a mean answer. With the same propensities this varies less than the inverse-propensity estimate,
    sum of clicks / p_k over impressions (Joachims et al. 2017, eq. 4), and has the same limit.
    """
    looks_M = counts.shown * np.maximum(propensities_K, _LEAST_PROPENSITY)[counts.positions]
    mean = counts.clicked.sum() / looks_M.sum()
    return np.asarray((counts.by_pair(counts.clicked) + mean) / (counts.by_pair(looks_M) + 1))


def by_intervention(counts: Counts) -> Floats:
    """Propensities [K] from pairs that were shown at several positions, by random swaps or by rankers that changed.

    Of the pairs that stood both at i and at j, each as heavy at i as at j whatever the traffic,

        c_i = sum of clicks at i / impressions at i,  c_j likewise;  c_i / c_j = p_i / p_j

    (swaps: Joachims et al. 2017, section 5.3; random pairs: Wang et al., WSDM 2018, RandPair; pairs harvested from any
    log: Agarwal et al., WSDM 2019, eq. 6). The logarithms of all these quotients are solved for log p by least squares,
    each weighed by the clicks behind it, 1 / (1 / clicks at i + 1 / clicks at j), which is its inverse variance. Where
    clicks are few, deep down, the curve goes on straight in log k: each bend of it weighs as 100 clicks against it.
    DataError where nothing was clicked at two positions.
    """
    rates_PK = np.zeros((counts.n_pairs, counts.n_positions))
    rates_PK[counts.pairs, counts.positions] = counts.clicked / counts.shown
    shown_PK = np.zeros_like(rates_PK)
    shown_PK[counts.pairs, counts.positions] = counts.shown
    rows, targets, weights = [], [], []
    for i in range(counts.n_positions):
        for j in range(i + 1, counts.n_positions):
            both_P = (shown_PK[:, i] > 0) & (shown_PK[:, j] > 0)
            # The lighter side of a pair says how much is known of its rate: it weighs the pair on both sides.
            weight_P = np.minimum(shown_PK[both_P, i], shown_PK[both_P, j])
            clicks_i, clicks_j = (float((rates_PK[both_P, k] * weight_P).sum()) for k in (i, j))
            if clicks_i > 0 and clicks_j > 0:
                row_K = np.zeros(counts.n_positions)
                row_K[[i, j]] = 1, -1
                rows.append(row_K)
                targets.append(np.log(clicks_i / clicks_j))
                weights.append(1 / (1 / clicks_i + 1 / clicks_j))
    if not rows:
        raise DataError(
            "training.propensity intervention needs documents that were clicked at several positions, none was; "
            "use em, or log random swaps"
        )
    bends_RK = _bends(counts.n_positions)
    root_R = np.sqrt(np.array([*weights, *[_BEND_CLICKS] * len(bends_RK)]))
    design_RK = np.concatenate([np.array(rows), bends_RK])[:, 1:] * root_R[:, None]
    logs_K, *_ = np.linalg.lstsq(design_RK, np.array([*targets, *[0.0] * len(bends_RK)]) * root_R, rcond=None)
    return np.asarray(np.exp(np.concatenate([[0.0], logs_K])))


def _bends(n_positions: int) -> Floats:
    """Rows [K - 2, K] that are 0 where log p is a straight line in log k, as a power law is: log p_k less the line."""
    bends_RK = np.zeros((max(n_positions - 2, 0), n_positions))
    x_K = np.log(np.arange(1, n_positions + 1))
    for row_K, k in zip(bends_RK, range(1, n_positions - 1), strict=True):
        part = (x_K[k] - x_K[k - 1]) / (x_K[k + 1] - x_K[k - 1])
        row_K[[k - 1, k, k + 1]] = part - 1, 1, -part
    return bends_RK


def by_em(counts: Counts, features_PF: NDArray[np.float32] | None, seed: int, n_threads: int) -> Floats:
    """Propensities [K] by regression EM: no intervention is needed, relevance is learned from features.

    Expectation, for the impressions without a click (Wang et al., WSDM 2018, eq. 1; one with a click was looked at,
    and relevant):

        P(looked at | no click) = p (1 - r) / (1 - p r),  P(relevant | no click) = r (1 - p) / (1 - p r)

    Maximization: p_k is the mean of the first over the impressions at k; r_qd is fitted by boosted trees to the mean
    of the second over those of the pair (there: to samples of it), or is that mean where there are no features. Ends
    when no propensity moves by 0.0001 any more, or after 100 steps.
    """
    shown_P = counts.by_pair(counts.shown)
    shown_K = np.maximum(counts.by_position(counts.shown), 1e-12)
    rates_K = counts.by_position(counts.clicked) / shown_K
    propensities_K = np.clip(rates_K / max(rates_K.max(), 1e-12), _LEAST_PROPENSITY, 1.0)
    relevance_P = np.full(counts.n_pairs, min(2 * float(counts.clicked.sum() / counts.shown.sum()), 0.5))
    regression = None if features_PF is None else _Regression(features_PF, shown_P, seed, n_threads)
    unclicked_M = counts.shown - counts.clicked
    for _ in range(_EM_STEPS):
        p_M, r_M = propensities_K[counts.positions], relevance_P[counts.pairs]
        neither_M = np.maximum(1 - p_M * r_M, 1e-12)
        looks_M = counts.clicked + unclicked_M * p_M * (1 - r_M) / neither_M
        relevant_M = counts.clicked + unclicked_M * r_M * (1 - p_M) / neither_M
        before_K = propensities_K
        propensities_K = counts.by_position(looks_M) / shown_K
        relevance_P = counts.by_pair(relevant_M) / np.maximum(shown_P, 1e-12)
        if regression is not None:
            relevance_P = regression.fit(relevance_P)
        if np.abs(propensities_K - before_K).max() < _EM_TOLERANCE:
            break
    return np.asarray(propensities_K / propensities_K[0])


class _Regression:
    """Boosted trees of features that predict a chance; binned once."""

    def __init__(self, features_PF: NDArray[np.float32], weights_P: Floats, seed: int, n_threads: int) -> None:
        self._matrix = xgboost.QuantileDMatrix(
            features_PF, np.zeros(len(features_PF)), weight=weights_P, nthread=n_threads
        )
        self._parameters = {
            "objective": "binary:logistic",
            "max_depth": 4,
            "learning_rate": 0.5,
            "base_score": 0.5,
            "seed": seed,
            "nthread": n_threads,
        }

    def fit(self, chances_P: Floats) -> Floats:
        """Learn chances, and give those that the features explain."""
        self._matrix.set_label(np.clip(chances_P, 0, 1))
        booster = xgboost.train(self._parameters, self._matrix, _EM_TREES)
        return np.asarray(booster.predict(self._matrix), dtype=np.float64)


def _counts(rows: RankingRows) -> Counts:
    if rows.clicks is None:
        raise TypeError(f"{rows.file} is no click log")
    return Counts.of(rows.clicks, [len(labels_D) for labels_D in rows.labels])


def _note(rows: RankingRows, training: ClicksTraining) -> str:
    counts = _counts(rows)
    how = {
        "none": "taken as they are, with the bias of their positions",
        "em": "weighed by propensities from EM",
        "intervention": "weighed by propensities from documents shown at several positions",
        "given": "weighed by the propensities given",
    }
    given = "given" if isinstance(training.propensity, tuple) else training.propensity or "em"
    return (
        f"{rows.file} is a click log: {int(counts.clicked.sum())} clicks in {int(counts.shown.sum())} impressions of "
        f"{counts.n_pairs} documents in {len(rows)} lists, {how['none' if training.debias == 'none' else given]}"
    )

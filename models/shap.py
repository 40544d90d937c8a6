"""What each feature adds to the score that trees give a candidate: exact SHAP values, from a bundle alone.

The values of TreeSHAP (Lundberg, Erion and Lee 2018, "Consistent Individualized Feature Attribution for Tree
Ensembles", Algorithm 2) and of XGBoost's `pred_contribs`: the expectation over a feature that is not known follows the
training rows through the tree. A leaf's weight v counts where all S features of its path let a candidate through.
Feature i of it gets

    v (o_i - z_i) sum over sets A of the other ones of |A|! (S - |A| - 1)! / S! prod_{j in A} o_j prod_{j not in A} z_j

where o_j says whether the candidate passes the branches on feature j, and z_j is the share of training rows that do.
The weights are Beta integrals, so the sum is the integral over t from 0 to 1 of prod_{j != i} (z_j + t (o_j - z_j))
(Owen 1972, "Multilinear Extensions of Games"), a polynomial of degree S - 1, which Gauss's rule with S / 2 points gives
exactly.

Legend: F features, L leaves of all trees, S features of the longest path, Q points of the rule, D candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.trees import Trees, read_trees


@dataclass(frozen=True, slots=True)
class _Paths:
    """The way to each leaf, as conditions: one row [S, L] a feature, however often it is asked.

    A value passes where low <= x < high, a missing one where `passes_missing`. shares: of the training rows. A shorter
    path ends in conditions that everything passes.
    """

    features: NDArray[np.int64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    passes_missing: NDArray[np.bool_]
    shares: NDArray[np.float64]
    weights: NDArray[np.float64]


class Explainer:
    """Explains scores of one ensemble; about 1 ms a candidate for 300 trees of depth 6. Several threads may ask."""

    def __init__(self, trees: Trees) -> None:
        self._n_features = trees.n_features
        self._paths = paths = _paths(trees)
        n_points = -(-len(paths.features) // 2)
        points, weights = np.polynomial.legendre.leggauss(max(n_points, 1))
        points_Q, weights_Q = (points + 1) / 2, weights / 2
        shares_SL = paths.shares
        # Factors of the product, of a feature that passes and of one that does not.
        self._passing_QSL = np.stack([shares_SL + t * (1 - shares_SL) for t in points_Q])
        self._failing_QSL = np.stack([shares_SL * (1 - t) for t in points_Q])
        # What the product is worth to a feature that passes; to one that does not, it is the same for all of a leaf.
        self._gains_QSL = (1 - shares_SL) * weights_Q[:, None, None] / self._passing_QSL
        self._losses_Q = -weights_Q / (1 - points_Q)
        self.base = float((paths.weights * shares_SL.prod(axis=0)).sum())
        """The score's expectation: what there is without any feature."""

    @classmethod
    def open(cls, model_file: Path, ref: str) -> Explainer:
        """Read what explains a bundle's model; InputError where it is none of trees, or too old to be explained.

        ref: what a refusal calls the model.
        """
        trees = read_trees(model_file)
        if trees is None:
            raise InputError(
                f'contributions need a model of trees, {ref} is none; ask with explain "values" what it read, or leave '
                "explain out",
                field="explain",
            )
        if trees.covers is None:
            raise InputError(
                f"contributions need the number of training rows at every branch, {ref} was exported without; train it "
                'again, or ask with explain "values"',
                field="explain",
            )
        return cls(trees)

    def contributions(self, features_DF: NDArray[np.float32]) -> NDArray[np.float64]:
        """What each feature adds [D, F] to the score of each candidate, NaN where missing: score = base + their sum."""
        contributions_DF = np.empty(features_DF.shape, np.float64)
        for row, features_F in enumerate(features_DF):
            contributions_DF[row] = self._explain(features_F)
        return contributions_DF

    def _explain(self, features_F: NDArray[np.float32]) -> NDArray[np.float64]:
        paths = self._paths
        values_SL = features_F[paths.features]
        passes_SL = (values_SL >= paths.low) & (values_SL < paths.high)
        if np.isnan(features_F).any():
            passes_SL |= np.isnan(values_SL) & paths.passes_missing
        gains_SL = np.zeros(passes_SL.shape)
        losses_L = np.zeros(passes_SL.shape[1])
        for passing_SL, failing_SL, gain_SL, loss in zip(
            self._passing_QSL, self._failing_QSL, self._gains_QSL, self._losses_Q, strict=True
        ):
            product_L = np.where(passes_SL, passing_SL, failing_SL).prod(axis=0) * paths.weights
            gains_SL += gain_SL * product_L
            losses_L += loss * product_L
        # A condition that everything passes has a share of 1, and so a gain of 0.
        parts_SL = np.where(passes_SL, gains_SL, losses_L)
        parts_F = np.bincount(paths.features.ravel(), parts_SL.ravel(), minlength=self._n_features)
        return np.asarray(parts_F, np.float64)


def _paths(trees: Trees) -> _Paths:
    """Walk all trees at once, level by level, and keep the conditions of every leaf that is reached."""
    assert trees.covers is not None
    nodes = trees.roots[:-1]
    n_slots = 0
    state = _State.empty(len(nodes))
    done: list[tuple[NDArray[np.int64], _State]] = []
    while len(nodes):
        is_leaf = trees.is_leaf[nodes]
        done.append((nodes[is_leaf], state.take(is_leaf)))
        nodes, state = nodes[~is_leaf], state.take(~is_leaf)
        features = trees.features[nodes]
        slots, n_slots = state.slots(features, n_slots)
        sides = []
        for is_left, children in ((True, trees.left[nodes]), (False, trees.right[nodes])):
            shares = _share(trees.covers[children], trees.covers[nodes])
            side = state.widened(n_slots)
            side.narrow(slots, features, trees.thresholds[nodes], trees.missing_left[nodes] == is_left, shares, is_left)
            sides.append((children, side))
        nodes = np.concatenate([children for children, _ in sides])
        state = _State.joined([side for _, side in sides])
    leaves = np.concatenate([leaves for leaves, _ in done])
    final = _State.joined([part.widened(n_slots) for _, part in done])
    return _Paths(
        # A slot without a feature is one that everything passes, missing or not.
        features=np.ascontiguousarray(np.maximum(final.features, 0).T),
        low=np.ascontiguousarray(final.low.T),
        high=np.ascontiguousarray(final.high.T),
        passes_missing=np.ascontiguousarray(final.passes_missing.T),
        shares=np.ascontiguousarray(final.shares.T),
        weights=trees.weights[leaves].astype(np.float64),
    )


def _share(part: NDArray[np.float32], whole: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of the training rows; where none came by, half of nothing."""
    shares = np.full(len(part), 0.5)
    np.divide(part, whole, out=shares, where=whole > 0, dtype=np.float64)
    return shares


@dataclass(frozen=True, slots=True)
class _State:
    """Conditions [n, S] on the way to n nodes; a slot that is not used yet has feature -1."""

    features: NDArray[np.int64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    passes_missing: NDArray[np.bool_]
    shares: NDArray[np.float64]

    @classmethod
    def empty(cls, n: int, n_slots: int = 0) -> _State:
        shape = (n, n_slots)
        return cls(
            np.full(shape, -1),
            np.full(shape, -np.inf, np.float32),
            np.full(shape, np.inf, np.float32),
            np.ones(shape, np.bool_),
            np.ones(shape),
        )

    @classmethod
    def joined(cls, parts: list[_State]) -> _State:
        columns = zip(*((p.features, p.low, p.high, p.passes_missing, p.shares) for p in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def take(self, rows: NDArray[np.bool_]) -> _State:
        return _State(
            self.features[rows], self.low[rows], self.high[rows], self.passes_missing[rows], self.shares[rows]
        )

    def widened(self, n_slots: int) -> _State:
        """Copy it, with `n_slots` slots a node."""
        n, n_used = self.features.shape
        free = _State.empty(n, n_slots - n_used)
        return _State(
            np.hstack([self.features, free.features]),
            np.hstack([self.low, free.low]),
            np.hstack([self.high, free.high]),
            np.hstack([self.passes_missing, free.passes_missing]),
            np.hstack([self.shares, free.shares]),
        )

    def slots(self, features: NDArray[np.int64], n_slots: int) -> tuple[NDArray[np.int64], int]:
        """Each node's slot for its feature, the one it has or its next free one; and how many slots that takes."""
        is_same = self.features == features[:, None]
        n_used = (self.features >= 0).sum(axis=1)
        slots = np.where(is_same.any(axis=1), is_same.argmax(axis=1) if is_same.shape[1] else 0, n_used)
        return slots, max(n_slots, int(slots.max(initial=-1)) + 1)

    def narrow(
        self,
        slots: NDArray[np.int64],
        features: NDArray[np.int64],
        thresholds: NDArray[np.float32],
        passes_missing: NDArray[np.bool_],
        shares: NDArray[np.float64],
        is_left: bool,
    ) -> None:
        """Add one branch to every node's conditions."""
        at = (np.arange(len(slots)), slots)
        self.features[at] = features
        if is_left:
            self.high[at] = np.minimum(self.high[at], thresholds)
        else:
            self.low[at] = np.maximum(self.low[at], thresholds)
        self.passes_missing[at] &= passes_missing
        self.shares[at] *= shares

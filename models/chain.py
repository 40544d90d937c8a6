"""A linear chain over the tags of a text: which sequence is best, and how sure a part of it is. In numpy, per request.

A sequence's score is the sum of its words' logits and of its transitions: from the beginning to the first tag, from tag
to tag, and from the last tag to the end (Lafferty, McCallum and Pereira 2001, "Conditional Random Fields", section 3).

Shapes: W words, K tags. Transitions [K + 2, K]: row i from tag i; row K from the beginning; row K + 1 to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError

TRANSITIONS = "transitions.npy"

Scores = NDArray[np.float64]


def bio_transitions(tags: Sequence[str]) -> Scores:
    """Transitions [K + 2, K], 0 where BIO allows them and -inf where not: `I-x` follows `B-x` or `I-x` alone."""
    transitions = np.zeros((len(tags) + 2, len(tags)))
    for place, tag in enumerate(tags):
        if tag.startswith("I-"):
            before = [row for row, other in enumerate(tags) if other in (tag, f"B-{tag[2:]}")]
            begins = f"B-{tag[2:]}" in tags
            transitions[:-1, place] = -np.inf
            transitions[before if begins else [], place] = 0.0
    return transitions


class TagChain:
    """Decodes word logits [W, K]; `learned` [K + 2, K] are a network's own transitions, None where it has none."""

    def __init__(self, tags: Sequence[str], learned: NDArray[np.floating] | None = None) -> None:
        scores = bio_transitions(tags)
        if learned is not None:
            scores = scores + np.asarray(learned, dtype=np.float64)
        n_tags = len(tags)
        self._is_learned = learned is not None
        self._begin_K, self._end_K, self._step_KK = scores[n_tags], scores[n_tags + 1], scores[:n_tags]
        # Row i: into tag i. A maximum over the last axis is several times as fast as one over the first.
        self._into_KK = np.ascontiguousarray(self._step_KK.T)
        self._most_into_K = np.maximum(self._into_KK.max(axis=1), self._begin_K)
        self._most_from_K = np.maximum(self._step_KK.max(axis=1), self._end_K)
        self._odds_KK = np.exp(self._step_KK)
        self._places_K = np.arange(n_tags)
        self._ones_K = np.ones(n_tags)

    @classmethod
    def load(cls, directory: Path, tags: Sequence[str]) -> TagChain:
        """Read `transitions.npy`; BundleError where it is absent, broken, or of other tags."""
        file = directory / TRANSITIONS
        try:
            learned = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(f"{file} must be transitions as written by training, got: {error}") from error
        shape = (len(tags) + 2, len(tags))
        if learned.shape != shape or learned.dtype != np.float32 or not np.isfinite(learned).all():
            raise BundleError(f"{file} must be finite float32 {shape}, got {learned.dtype} {learned.shape}")
        return cls(tags, learned)

    def best(self, logits_WK: Scores) -> list[int]:
        """Indices [W] of the valid sequence with the highest score (Forney 1973, "The Viterbi algorithm").

        Without learned transitions, the likeliest tag of every word is that sequence where it is a valid one.
        Of equal scores the first tag in the order of the tags wins. Some valid sequence must have a finite score.
        """
        if not len(logits_WK):
            return []
        likeliest_W = logits_WK.argmax(axis=1)
        if self._is_best(logits_WK, likeliest_W):
            return [int(tag) for tag in likeliest_W]
        scores_K = self._begin_K + logits_WK[0]
        origins_WK = np.empty(logits_WK.shape, dtype=np.int64)
        for word in range(1, len(logits_WK)):
            through_KK = self._into_KK + scores_K
            origins_WK[word] = origin_K = through_KK.argmax(axis=1)
            scores_K = through_KK[self._places_K, origin_K] + logits_WK[word]
        path = [int((scores_K + self._end_K).argmax())]
        for word in range(len(logits_WK) - 1, 0, -1):
            path.append(int(origins_WK[word, path[-1]]))
        return path[::-1]

    def _is_best(self, logits_WK: Scores, path_W: NDArray[np.int64]) -> bool:
        """Whether a bound shows that the path is valid and every other one scores lower; mostly so of a sure network.

        Another tag at a word loses the difference of their logits, and gains at most what the best transitions into it
        and from it have over those of the path, as far as they have more.
        """
        taken = np.concatenate(
            ([self._begin_K[path_W[0]]], self._step_KK[path_W[:-1], path_W[1:]], [self._end_K[path_W[-1]]])
        )
        if np.minimum.reduce(taken) == -np.inf:
            return False
        others_WK = logits_WK + np.maximum(self._most_into_K - taken[:-1, np.newaxis], 0.0)
        others_WK += np.maximum(self._most_from_K - taken[1:, np.newaxis], 0.0)
        words = np.arange(len(path_W))
        others_WK[words, path_W] = -np.inf
        return bool((np.maximum.reduce(others_WK, axis=1) < logits_WK[words, path_W]).all())

    def chances(self, logits_WK: Scores, path: Sequence[int], parts: Sequence[tuple[int, int]]) -> list[float]:
        """How likely the tags of `path` are to be right in each part: words `start` to `end` (exclusive), all of them.

        With learned transitions, the marginal probability of these tags at these words over all valid sequences, by
        forward-backward (Rabiner 1989, "A tutorial on hidden Markov models", section III.A, scaled as in V.A). Without,
        the product of the words' softmax: the network then takes words to be independent given the text.
        """
        if not parts:
            return []
        odds_WK = np.exp(logits_WK - logits_WK.max(axis=1, keepdims=True))
        if not self._is_learned:
            chance_W = odds_WK[np.arange(len(path)), path] / odds_WK.sum(axis=1)
            return [float(chance_W[start:end].prod()) for start, end in parts]
        before_WK, after_WK, scale_W = self._sweep(odds_WK)
        chances = []
        for start, end in parts:
            chance = before_WK[start, path[start]] * after_WK[end - 1, path[end - 1]]
            for word in range(start + 1, end):
                chance *= self._odds_KK[path[word - 1], path[word]] * odds_WK[word, path[word]] / scale_W[word]
            chances.append(float(chance))
        return chances

    def marginals(self, logits_WK: Scores) -> Scores:
        """How likely each tag is at each word [W, K], over all valid sequences: their rows sum to 1."""
        if not len(logits_WK):
            return logits_WK
        odds_WK = np.exp(logits_WK - logits_WK.max(axis=1, keepdims=True))
        before_WK, after_WK, _ = self._sweep(odds_WK)
        return before_WK * after_WK

    def _sweep(self, odds_WK: Scores) -> tuple[Scores, Scores, Scores]:
        """Forward and backward odds [W, K], their product the chance of each tag; the scales [W] that make it so."""
        before_WK, after_WK = np.empty_like(odds_WK), np.empty_like(odds_WK)
        scale_W = np.empty(len(odds_WK))
        # Into arrays that are there: at some tens of tags a call costs more than what it computes.
        reached_K = np.exp(self._begin_K)
        for word, before_K in enumerate(before_WK):
            np.multiply(reached_K, odds_WK[word], out=before_K)
            scale_W[word] = before_K.dot(self._ones_K)
            np.divide(before_K, scale_W[word], out=before_K)
            np.dot(before_K, self._odds_KK, out=reached_K)
        end_K = np.exp(self._end_K)
        np.divide(end_K, before_WK[-1].dot(end_K), out=after_WK[-1])
        scaled_WK = odds_WK / scale_W[:, np.newaxis]
        for word in range(len(odds_WK) - 1, 0, -1):
            np.dot(self._odds_KK, scaled_WK[word] * after_WK[word], out=after_WK[word - 1])
        return before_WK, after_WK, scale_W

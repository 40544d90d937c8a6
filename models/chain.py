"""A linear chain over the tags of a text: which sequence is best, and how sure a part of it is. In numpy, by batch.

A sequence's score is the sum of its words' logits and of its transitions: from the beginning to the first tag, from tag
to tag, and from the last tag to the end (Lafferty, McCallum and Pereira 2001, "Conditional Random Fields", section 3).

Shapes: W words of a text, N of all of them, B texts, K tags. Transitions [K + 2, K]: row i from tag i; row K from the
beginning; row K + 1 to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError

TRANSITIONS = "transitions.npy"

Scores = NDArray[np.float64]

_RESCALED = 64
"""Words after which the odds are brought back to 1; at each they grow to the number of tags' times of it at most."""


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
        self._odds_KK, self._into_odds_KK = np.exp(self._step_KK), np.exp(self._into_KK)
        self._begin_odds_K = np.exp(self._begin_K)
        self._places_K = np.arange(n_tags)

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

    def best(self, logits: Sequence[Scores]) -> list[list[int]]:
        """Indices [W] of each text's valid sequence of the highest score (Forney 1973, "The Viterbi algorithm").

        Without learned transitions, the likeliest tag of every word is that sequence where it is a valid one.
        Of equal scores the first tag in the order of the tags wins. Some valid sequence must have a finite score.
        logits: [W, K] of each text; the others change nothing in what is said of one.
        """
        texts = _Texts(logits)
        if not len(texts.logits_NK):
            return [[] for _ in logits]
        likeliest_N = texts.logits_NK.argmax(axis=1)
        are_best, paths = iter(self._are_best(texts, likeliest_N).tolist()), likeliest_N.tolist()
        return [
            paths[begin:end] if begin == end or next(are_best) else self._search(texts.logits_NK[begin:end])
            for begin, end in texts.places
        ]

    def _search(self, logits_WK: Scores) -> list[int]:
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

    def _are_best(self, texts: _Texts, path_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a bound shows that a text's path is valid and every other one scores lower; mostly so of a sure one.

        Another tag at a word loses the difference of their logits, and gains at most what the best transitions into it
        and from it have over those of the path, as far as they have more. [] of texts without words.
        """
        into_N, from_N = self._steps(texts, path_N)
        is_valid_N = np.minimum(into_N, from_N) > -np.inf
        # A path that is not valid is compared with nothing: of infinities nothing is known.
        into_N[~is_valid_N] = from_N[~is_valid_N] = 0.0
        others_NK = texts.logits_NK + np.maximum(self._most_into_K - into_N[:, np.newaxis], 0.0)
        others_NK += np.maximum(self._most_from_K - from_N[:, np.newaxis], 0.0)
        words = np.arange(len(path_N))
        others_NK[words, path_N] = -np.inf
        is_ahead_N = np.maximum.reduce(others_NK, axis=1) < texts.logits_NK[words, path_N]
        return np.logical_and.reduceat(is_ahead_N & is_valid_N, texts.begins)

    def _steps(self, texts: _Texts, path_N: NDArray[np.int64]) -> tuple[Scores, Scores]:
        """Transitions [N] of the texts' paths into each word's tag, and from it."""
        into_N, from_N = np.empty(len(path_N)), np.empty(len(path_N))
        into_N[1:] = from_N[:-1] = self._step_KK[path_N[:-1], path_N[1:]]
        into_N[texts.begins] = self._begin_K[path_N[texts.begins]]
        from_N[texts.lasts] = self._end_K[path_N[texts.lasts]]
        return into_N, from_N

    def chances(
        self, logits: Sequence[Scores], paths: Sequence[Sequence[int]], parts: Sequence[Sequence[tuple[int, int]]]
    ) -> list[list[float]]:
        """How likely the tags of a text's path are to be right in each part: words `start` to `end` (exclusive), all.

        With learned transitions, the marginal probability of these tags at these words over all valid sequences, by
        forward-backward (Rabiner 1989, "A tutorial on hidden Markov models", section III.A). Without, the product of
        the words' softmax: the network then takes words to be independent given the text.
        logits, parts: of each text, and its best path; the others change nothing in what is said of one.
        """
        chances: list[list[float]] = [[] for _ in logits]
        asked = [text for text, its in enumerate(parts) if its]
        if not asked:
            return chances
        if not self._is_learned:
            for text in asked:
                odds_WK = np.exp(logits[text] - logits[text].max(axis=1, keepdims=True))
                chance_W = odds_WK[np.arange(len(odds_WK)), paths[text]] / odds_WK.sum(axis=1)
                chances[text] = [float(chance_W[start:end].prod()) for start, end in parts[text]]
            return chances
        sweep = self._sweep([logits[text] for text in asked], [paths[text] for text in asked])
        for row, text in enumerate(asked):
            chances[text] = [sweep.chance(row, start, end, paths[text]) for start, end in parts[text]]
        return chances

    def marginals(self, logits: Sequence[Scores]) -> list[Scores]:
        """Of each text, how likely each tag is at each word [W, K], over all valid sequences: their rows sum to 1."""
        paths = self.best(logits)
        if not any(paths):
            return list(logits)
        sweep = self._sweep(logits, paths)
        marginals_NK = sweep.before_NK * sweep.after_NK
        marginals_NK /= np.add.reduce(marginals_NK, axis=1, keepdims=True)
        return [marginals_NK[[sweep.row(text, word) for word in range(len(path))]] for text, path in enumerate(paths)]

    def _sweep(self, logits: Sequence[Scores], paths: Sequence[Sequence[int]]) -> _Sweep:
        """Go forward and backward through all texts at once, a word of each at a time.

        What is summed is the odds of sequences against the best one, `paths`: at its tags they are at least 1, and what
        they grow to is divided out now and then, so that nothing gets lost.
        """
        texts = _Texts(logits)
        sweep = _Sweep(texts)
        path_N = np.array([*chain.from_iterable(paths)], dtype=np.int64)
        into_N, _ = self._steps(texts, path_N)
        into_N += texts.logits_NK[np.arange(len(path_N)), path_N]
        odds_N1K = np.exp(texts.logits_NK - into_N[:, np.newaxis])[sweep.order][:, np.newaxis]
        before_N1K, after_N1K = np.empty_like(odds_N1K), np.empty_like(odds_N1K)
        # Into arrays that are there: at some tens of tags a call costs more than what it computes. Products of single
        # rows: one of all of them would be quicker, but gives other bits than a text has by itself.
        for word, (rows, before) in enumerate(zip(sweep.rows, (None, *sweep.rows), strict=False)):
            now_B1K = before_N1K[rows]
            if before is None:
                np.multiply(self._begin_odds_K, odds_N1K[rows], out=now_B1K)
                continue
            np.matmul(before_N1K[before][: len(now_B1K)], self._odds_KK, out=now_B1K)
            np.multiply(now_B1K, odds_N1K[rows], out=now_B1K)
            if word % _RESCALED == 0:
                sweep.scales[word] = scale_B11 = np.maximum.reduce(now_B1K, axis=2, keepdims=True)
                np.divide(now_B1K, scale_B11, out=now_B1K)
                odds_N1K[rows] /= scale_B11
        lasts = sweep.lasts
        end_K = self._end_K - self._end_K[path_N[texts.lasts]][:, np.newaxis]
        after_N1K[lasts] = np.exp(end_K)[:, np.newaxis]
        for rows, on in zip(sweep.rows[-2::-1], sweep.rows[:0:-1], strict=True):
            n_on = on.stop - on.start
            np.matmul(odds_N1K[on] * after_N1K[on], self._into_odds_KK, out=after_N1K[rows][:n_on])
        sweep.before_NK, sweep.after_NK = before_N1K[:, 0], after_N1K[:, 0]
        sweep.total_B = [float(sweep.before_NK[last].dot(sweep.after_NK[last])) for last in lasts]
        return sweep


class _Texts:
    """The words [N, K] of several texts one after the other. begins, lasts: where those that have words do."""

    def __init__(self, logits: Sequence[Scores]) -> None:
        self.logits_NK = logits[0] if len(logits) == 1 else np.concatenate(logits)
        self.lengths = [len(logits_WK) for logits_WK in logits]
        self.places = list(pairwise((0, *accumulate(self.lengths))))
        self.begins = [begin for begin, end in self.places if begin < end]
        self.lasts = [end - 1 for begin, end in self.places if begin < end]


class _Sweep:
    """Forward and backward odds [N, K] of the words of several texts.

    Their first words stand before all second ones, and so on, the longest text first (as PyTorch packs sequences).
    order: which word of `texts` stands there. rows: where the words of each number stand. lasts: where texts end.
    scales: what the odds up to a word of that number were divided by. total_B: the odds of all sequences.
    """

    def __init__(self, texts: _Texts) -> None:
        self._texts = texts
        left = sorted(range(len(texts.lengths)), key=lambda text: -texts.lengths[text])
        self.order: list[int] = []
        self.rows: list[slice] = []
        for word in range(max(texts.lengths)):
            while texts.lengths[left[-1]] <= word:
                left.pop()
            begin = len(self.order)
            self.order += [texts.places[text][0] + word for text in left]
            self.rows.append(slice(begin, len(self.order)))
        self._row = {place: row for row, place in enumerate(self.order)}
        self.lasts = [self._row[last] for last in texts.lasts]
        self.scales: dict[int, Scores] = {}
        self.before_NK = self.after_NK = np.empty((0, 0))
        self.total_B: list[float] = []

    def row(self, text: int, word: int) -> int:
        """Where a text's word stands."""
        return self._row[self._texts.places[text][0] + word]

    def chance(self, text: int, start: int, end: int, path: Sequence[int]) -> float:
        """How likely a text's best path is right from word `start` to `end` (exclusive): its own odds are 1."""
        first, last = self.row(text, start), self.row(text, end - 1)
        chance = self.before_NK[first, path[start]] * self.after_NK[last, path[end - 1]] / self.total_B[text]
        for word, scale_B11 in self.scales.items():
            if start < word < end:
                chance /= scale_B11[self.row(text, word) - self.rows[word].start, 0, 0]
        return float(chance)

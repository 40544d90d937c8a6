"""Words whose tag the other sentences contradict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from training.checks.confident import Suspects, cross_validated, doubt, numbered, stratified_folds
from training.checks.duplicates import normal
from training.checks.finding import Finding, Severity, count, examples, percent
from training.checks.label_noise import sampled
from training.data.splits import TaggingRows

MAX_WORDS = 100_000
"""Words that are cross-validated at most, in a random part of the sentences of a larger train."""
_LOWEST = 0.9
"""Lowest threshold of `doubt`: words are many and alike, and a tag is contradicted by a sure model only."""
_MAX_CELLS = 15_000_000
"""Largest number of words x tags."""
_MANY = 0.002
"""Share of suspect words from which they are a warning: about one sentence in fifty."""


def tag_noise(train: TaggingRows, seed: int) -> list[Finding]:
    """Find the words of train whose tag is doubted."""
    n_words = sum(map(len, train.tokens))
    most = min(MAX_WORDS, _MAX_CELLS // len({tag for tags in train.tags for tag in tags}))
    rows_N = sampled(len(train), max(int(len(train) * min(most / n_words, 1.0)), 1), seed)
    rows = train if len(rows_N) == len(train) else train.take(rows_N)
    tags, places, found = tag_suspects(rows, seed)
    if not len(found):
        return []
    seen = "" if len(rows_N) == len(train) else f" (a random {len(rows_N):,} of {len(train):,} texts were looked at)"
    n_texts = len({places[word][0] for word in found.rows})
    sentence = (
        f"{count(len(found), 'train word')} ({percent(len(found), len(places))}) in {count(n_texts, 'text')}{seen} may "
        "have a wrong tag: the other texts contradict it; look at them, the most doubtful first"
    )
    shown = []
    for word, rather, given, preferred in zip(found.rows, found.classes, found.given, found.preferred, strict=True):
        row, token = places[word]
        shown.append(
            {
                "word": rows.tokens[row][token],
                "text": " ".join(rows.tokens[row]),
                "row": int(rows_N[row]) + 1,
                "tag": rows.tags[row][token],
                "rather": tags[rather],
                "probability of the tag": round(float(given), 4),
                "of the other": round(float(preferred), 4),
            }
        )
    severity: Severity = "warning" if len(found) >= _MANY * len(places) else "note"
    return [Finding("tag_noise", severity, len(found), sentence, examples(shown))]


def tag_suspects(rows: TaggingRows, seed: int) -> tuple[list[str], list[tuple[int, int]], Suspects]:
    """Give the tags in order, the (sentence, word) of each word, and which words are doubted.

    Naive Bayes over the word, its neighbours, its ends and its sentence's label; a sentence's words are in one fold.
    """
    names, classes_N = numbered([tag for sentence in rows.tags for tag in sentence])
    sentences_N = np.repeat(np.arange(len(rows)), [len(sentence) for sentence in rows.tokens])
    folds_N = stratified_folds(np.zeros(len(rows), dtype=np.int64), seed)[sentences_N]
    places = [(row, token) for row, sentence in enumerate(rows.tokens) for token in range(len(sentence))]
    return names, places, doubt(cross_validated(tag_features(rows), classes_N, folds_N), classes_N, _LOWEST)


def tag_features(rows: TaggingRows) -> csr_matrix:
    """Which of the features of a word's place are there [words, F]."""
    columns: dict[tuple[str, ...], int] = {}
    ids: list[int] = []
    starts = [0]
    for row, sentence in enumerate(rows.tokens):
        label = "" if rows.labels is None else rows.labels[row]
        for features in _context([normal(token) for token in sentence], label):
            ids += [columns.setdefault(feature, len(columns)) for feature in features]
            starts.append(len(ids))
    ids_L: NDArray[np.int64] = np.array(ids, dtype=np.int64)
    return csr_matrix((np.ones(len(ids)), ids_L, np.array(starts)), shape=(len(starts) - 1, len(columns)))


def _context(words: Sequence[str], label: str) -> Iterator[tuple[tuple[str, ...], ...]]:
    padded = ("<<", "<", *words, ">", ">>")
    for far, before, word, after, beyond in zip(padded, padded[1:], padded[2:], padded[3:], padded[4:], strict=False):
        yield (
            ("word", word),
            ("before", before),
            ("after", after),
            ("before, word", before, word),
            ("word, after", word, after),
            ("two before", far, before),
            ("two after", after, beyond),
            ("ends in", word[-3:]),
            ("shape", _shape(word)),
            ("label", label),
            ("label, word", label, word),
            ("label, before", label, before),
            ("label, after", label, after),
        )


def _shape(word: str) -> str:
    return "".join("9" if letter.isdigit() else "a" if letter.isalpha() else letter for letter in word[:8])

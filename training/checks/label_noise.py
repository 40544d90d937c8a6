"""Rows whose label the other rows contradict: what a person should look at before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from models.manifest import NgramText
from models.text import MAX_NGRAM_CHARACTERS, ngram_ids
from training.checks.confident import Suspects, cross_validated, doubt, numbered, stratified_folds
from training.checks.duplicates import Texts
from training.checks.finding import Finding, Severity, count, examples, percent

MAX_ROWS = 20_000
"""Train rows that are cross-validated at most, a random part of more; of many labels, fewer (_MAX_CELLS)."""
_MAX_CELLS = 10_000_000
"""Largest number of rows x labels."""
_LOWEST = 0.5
"""Lowest threshold of `doubt`."""
_MANY = 0.01
"""Share of suspects from which they are a warning."""
_TEXT = NgramText(char_ngrams=(2, 5), word_ngrams=(1, 2), n_buckets=2**18)


def label_noise(train: Texts, seed: int) -> list[Finding]:
    """Find the train rows whose label is doubted."""
    if train.labels is None:
        return []
    texts, labels = train.requests(), train.labels
    rows_N = sampled(len(texts), min(MAX_ROWS, _MAX_CELLS // max(len(set(labels)), 1)), seed)
    names, found = label_suspects([texts[row] for row in rows_N], [labels[row] for row in rows_N], seed)
    if not len(found):
        return []
    seen = "" if len(rows_N) == len(texts) else f" (a random {len(rows_N):,} of them were looked at)"
    sentence = (
        f"{count(len(found), 'train row')} ({percent(len(found), len(rows_N))}){seen} may have a wrong label: the "
        "other rows contradict it; look at them, the most doubtful first"
    )
    shown = [
        {
            "text": texts[rows_N[row]],
            "row": int(rows_N[row]) + 1,
            "label": labels[rows_N[row]],
            "rather": names[rather],
            "probability of the label": round(float(given), 4),
            "of the other": round(float(preferred), 4),
        }
        for row, rather, given, preferred in zip(found.rows, found.classes, found.given, found.preferred, strict=True)
    ]
    severity: Severity = "warning" if len(found) >= _MANY * len(rows_N) else "note"
    return [Finding("label_noise", severity, len(found), sentence, examples(shown))]


def label_suspects(texts: Sequence[str], labels: Sequence[str], seed: int) -> tuple[list[str], Suspects]:
    """Give the labels in order and the rows that are doubted, by naive Bayes over TF-IDF of hashed n-grams."""
    names, classes_N = numbered(labels)
    if len(names) < 2:
        return names, Suspects(*(np.empty(0, dtype=np.int64),) * 2, *(np.empty(0),) * 2)
    probabilities_NC = cross_validated(tfidf(texts), classes_N, stratified_folds(classes_N, seed))
    return names, doubt(probabilities_NC, classes_N, _LOWEST)


def sampled(n_rows: int, most: int, seed: int) -> NDArray[np.int64]:
    """Give all rows in order, or a random `most` of them."""
    if n_rows <= most:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, most, replace=False))


def tfidf(texts: Sequence[str]) -> csr_matrix:
    """(1 + ln count) x (1 + ln((1 + N) / (1 + texts with it))), each row divided by its length [N, F]."""
    read = [ngram_ids(text[:MAX_NGRAM_CHARACTERS], _TEXT) for text in texts]
    ids, counts = (np.concatenate(parts) for parts in zip(*read, strict=True))
    n_texts_F = np.bincount(ids, minlength=_TEXT.n_buckets)
    values = (1 + np.log(counts.astype(np.float64))) * (1 + np.log((1 + len(texts)) / (1 + n_texts_F[ids])))
    starts = np.concatenate([[0], np.cumsum([len(one) for one, _ in read])])
    features_NF = csr_matrix((values, ids, starts), shape=(len(texts), _TEXT.n_buckets))
    lengths_N = np.sqrt(np.asarray(features_NF.multiply(features_NF).sum(axis=1)).ravel())
    features_NF.data /= np.repeat(np.maximum(lengths_N, 1e-12), np.diff(features_NF.indptr))
    return features_NF

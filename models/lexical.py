"""What words of a query stand where in a title: the lexical half of `models.features`.

Shape suffixes: D titles, W words of all titles end to end, Q distinct query terms, G character trigrams end to end.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

BM25_K1 = 1.2
BM25_B = 0.75
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
_FUZZY_FLOOR = 0.7  # below this two words share letters, not a spelling
_UNITS = {
    "inch": "in", "inches": "in", "foot": "ft", "feet": "ft", "ounce": "oz", "ounces": "oz", "pound": "lb",
    "pounds": "lb", "lbs": "lb", "gram": "g", "grams": "g", "kilogram": "kg", "kilograms": "kg", "liter": "l",
    "liters": "l", "litre": "l", "litres": "l", "millimeter": "mm", "centimeter": "cm", "meter": "m", "meters": "m",
    "watt": "w", "watts": "w", "volt": "v", "volts": "v", "gigabyte": "gb", "gigabytes": "gb", "terabyte": "tb",
    "gallon": "gal", "gallons": "gal", "quart": "qt", "quarts": "qt",
}  # fmt: skip

LEXICAL_NAMES = (
    "word_coverage",
    "idf_coverage",
    "bm25",
    "jaccard",
    "trigram_coverage",
    "fuzzy_coverage",
    "longest_run",
    "first_position",
    "last_word_found",
    "opens_alike",
    "number_coverage",
    "title_words",
    "query_words",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A text's words (lower case, without accents), their terms (singular, units in short form), and its trigrams."""

    words: tuple[str, ...]
    terms: tuple[str, ...]
    trigrams: NDArray[np.int64]


def read(text: str) -> Reading:
    """Split a text into runs of letters and numbers ("40oz" is "40", "oz") and collect its distinct trigrams."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter)).replace("'", "")
    words = tuple(sys.intern(word) for word in _WORD.findall(plain))
    letters = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    # Three code points of at most 21 bits make one exact number: no hash, no collision.
    trigrams_G = np.unique((letters[:-2] << 42) | (letters[1:-1] << 21) | letters[2:])
    return Reading(words, tuple(sys.intern(term(word)) for word in words), trigrams_G)


def term(word: str) -> str:
    """A word's singular, by the S-stemmer (Harman 1991, "How effective is suffixing?"), or a unit's short form."""
    if word in _UNITS:
        return _UNITS[word]
    if len(word) > 3 and word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


@dataclass(frozen=True)
class Corpus:
    """Statistics of the distinct training titles: how many, their mean length in words, how many hold each term."""

    n_titles: int
    mean_words: float
    counts: Mapping[str, int]

    @classmethod
    def of(cls, readings: Iterable[Reading]) -> Corpus:
        """Count over titles, each given once."""
        counts: Counter[str] = Counter()
        n_titles = n_words = 0
        for reading in readings:
            n_titles += 1
            n_words += len(reading.terms)
            counts.update(set(reading.terms))
        return cls(n_titles, n_words / max(n_titles, 1), dict(sorted(counts.items())))

    def idf(self, terms: Sequence[str]) -> NDArray[np.float64]:
        """ln(1 + (N - n + 0.5) / (n + 0.5)), Robertson and Zaragoza 2009, eq. 3.2; Lucene's 1 + keeps it positive."""
        n = np.array([self.counts.get(term, 0) for term in terms], dtype=np.float64)
        return np.log1p((self.n_titles - n + 0.5) / (n + 0.5))


def lexical_features(query: Reading, titles: Sequence[Reading], corpus: Corpus) -> NDArray[np.float32]:
    """Features [D, len(LEXICAL_NAMES)]; NaN where a text has no word, or the query lacks what a feature is about."""
    features_DF = np.full((len(titles), len(LEXICAL_NAMES)), np.nan, dtype=np.float32)
    n_words_D = np.array([len(title.terms) for title in titles], dtype=np.int64)
    features_DF[:, -2] = n_words_D
    features_DF[:, -1] = len(query.terms)
    filled_D = n_words_D > 0
    if query.terms and filled_D.any():
        readable = [title for title in titles if title.terms]
        features_DF[filled_D, :-2] = np.stack(_columns(query, readable, n_words_D[filled_D], corpus), axis=1)
    return features_DF


def _columns(
    query: Reading, titles: Sequence[Reading], n_words_D: NDArray[np.int64], corpus: Corpus
) -> list[NDArray[np.float64]]:
    terms = tuple(dict.fromkeys(query.terms))
    n_titles, n_terms = len(titles), len(terms)
    weights_Q = corpus.idf(terms)
    starts_D = np.concatenate([[0], np.cumsum(n_words_D)[:-1]])
    title_W = np.repeat(np.arange(n_titles), n_words_D)
    index = {term: position for position, term in enumerate(terms)}
    found_W = np.array([index.get(term, -1) for title in titles for term in title.terms], dtype=np.int64)

    hits_W = np.flatnonzero(found_W >= 0)
    cells = title_W[hits_W] * n_terms + found_W[hits_W]
    counts_DQ = np.bincount(cells, minlength=n_titles * n_terms).reshape(n_titles, n_terms).astype(np.float64)
    present_DQ = counts_DQ > 0
    n_found_D = present_DQ.sum(axis=1)
    n_distinct_D = np.array([len(set(title.terms)) for title in titles])

    opening_D = np.array([title.terms[0] == query.terms[0] for title in titles], dtype=np.float64)
    return [
        _word_coverage(query, titles),
        _weighted(present_DQ, weights_Q) / weights_Q.sum(),
        _bm25(counts_DQ, weights_Q, n_words_D, corpus.mean_words),
        n_found_D / (n_terms + n_distinct_D - n_found_D),
        _trigram_coverage(query, titles),
        _fuzzy_coverage(terms, weights_Q, titles, starts_D),
        _longest_run(found_W, title_W, n_titles) / n_terms,
        _first_position(title_W[hits_W], hits_W, starts_D),
        present_DQ[:, index[query.terms[-1]]].astype(np.float64),
        opening_D,
        _number_coverage(query, titles),
    ]


def _bm25(
    counts_DQ: NDArray[np.float64], weights_Q: NDArray[np.float64], n_words_D: NDArray[np.int64], mean_words: float
) -> NDArray[np.float64]:
    """Sum of idf * tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length)), Robertson and Zaragoza 2009, eq. 3.15."""
    saturation_D = BM25_K1 * (1 - BM25_B + BM25_B * n_words_D / max(mean_words, 1.0))
    return _weighted(counts_DQ * (BM25_K1 + 1) / (counts_DQ + saturation_D[:, None]), weights_Q)


def _first_position(
    titles_H: NDArray[np.int64], hits_H: NDArray[np.int64], starts_D: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Words before the first hit; NaN in a title without one. Hits H: their titles and their places among all words."""
    first_D = np.full(len(starts_D), np.nan)
    positions_H = hits_H - starts_D[titles_H]
    # Backwards: of several hits in a title the last one written, its first, stays.
    first_D[titles_H[::-1]] = positions_H[::-1]
    return first_D


def _weighted(values_DQ: NDArray[Any], weights_Q: NDArray[np.float64]) -> NDArray[np.float64]:
    # Not a matrix product: its order of summation, so its last bits, depend on how many titles stand in the list.
    products_DQ = np.ascontiguousarray(values_DQ * weights_Q, dtype=np.float64)
    return np.asarray(products_DQ.sum(axis=1))


def _word_coverage(query: Reading, titles: Sequence[Reading]) -> NDArray[np.float64]:
    words = set(query.words)
    return np.array([len(words.intersection(title.words)) for title in titles]) / len(words)


def _trigram_coverage(query: Reading, titles: Sequence[Reading]) -> NDArray[np.float64]:
    lengths_D = [len(title.trigrams) for title in titles]
    trigrams_G = np.concatenate([title.trigrams for title in titles])
    places_G = np.searchsorted(query.trigrams, trigrams_G).clip(max=len(query.trigrams) - 1)
    shared_G = query.trigrams[places_G] == trigrams_G
    starts_D = np.concatenate([[0], np.cumsum(lengths_D)[:-1]])
    return np.add.reduceat(shared_G.astype(np.float64), starts_D) / len(query.trigrams)


def _fuzzy_coverage(
    terms: Sequence[str], weights_Q: NDArray[np.float64], titles: Sequence[Reading], starts_D: NDArray[np.int64]
) -> NDArray[np.float64]:
    vocabulary = list(dict.fromkeys(term for title in titles for term in title.terms))
    column = {term: place for place, term in enumerate(vocabulary)}
    # Indel similarity: 2 x longest common subsequence / both lengths.
    similar_QV = cdist(terms, vocabulary, scorer=Indel.normalized_similarity, score_cutoff=_FUZZY_FLOOR, workers=1)
    similar_QW = similar_QV[:, [column[term] for title in titles for term in title.terms]]
    best_QD = np.maximum.reduceat(similar_QW, starts_D, axis=1)
    return np.asarray(_weighted(best_QD.T, weights_Q) / weights_Q.sum())


def _longest_run(found_W: NDArray[np.int64], title_W: NDArray[np.int64], n_titles: int) -> NDArray[np.float64]:
    """Longest run of words that follow each other in the title as they do in the query."""
    hit_W = found_W >= 0
    goes_on_W = np.zeros(len(found_W), dtype=bool)
    goes_on_W[1:] = hit_W[1:] & hit_W[:-1] & (found_W[1:] == found_W[:-1] + 1) & (title_W[1:] == title_W[:-1])
    begins_W = np.maximum.accumulate(np.where(goes_on_W, 0, np.arange(len(found_W))))
    lengths_W = np.where(hit_W, np.arange(len(found_W)) - begins_W + 1, 0)
    longest_D = np.zeros(n_titles)
    np.maximum.at(longest_D, title_W, lengths_W)
    return longest_D


def _number_coverage(query: Reading, titles: Sequence[Reading]) -> NDArray[np.float64]:
    """Part of the query's numbers, with their units where the query gives one, that the title has; NaN without any."""
    wanted = _numbers(query)
    if not wanted:
        return np.full(len(titles), np.nan)
    units = set(_UNITS.values())
    covered = [sum(_has(title, number, unit if unit in units else "") for number, unit in wanted) for title in titles]
    return np.array(covered, dtype=np.float64) / len(wanted)


def _numbers(reading: Reading) -> set[tuple[str, str]]:
    following = (*reading.terms[1:], "")
    return {(number, unit) for number, unit in zip(reading.terms, following, strict=True) if number[0].isdigit()}


def _has(title: Reading, number: str, unit: str) -> bool:
    return any(found == number and (not unit or after == unit) for found, after in _numbers(title))

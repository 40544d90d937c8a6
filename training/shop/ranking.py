"""The demo shop's ranking lists: candidates with features that a ranker may see, and grades by a noisy judge.

Shapes: D candidates of a query.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.shop.clicks import Candidates
from training.shop.relevance import Floats, Shelf, Truth

_BM25_K1, _BM25_B = 1.2, 0.75


class Titles:
    """The catalogue's titles as bags of words, for BM25 (Robertson & Zaragoza 2009, k1 = 1.2, b = 0.75) and overlap."""

    def __init__(self, shelf: Shelf) -> None:
        self._bags = [Counter(_terms(product.title)) for product in shelf.products]
        frequency = Counter(term for bag in self._bags for term in bag)
        n = len(self._bags)
        self._idf = {term: math.log(1 + (n - count + 0.5) / (count + 0.5)) for term, count in frequency.items()}
        self._lengths = [bag.total() for bag in self._bags]
        self._mean_length = sum(self._lengths) / n

    def bm25(self, query: str, places: NDArray[np.int64]) -> Floats:
        """Score of each title at `places` [D]; idf = ln(1 + (N - n + 0.5) / (n + 0.5)), so never negative."""
        terms = _terms(query)
        return np.array([self._score(terms, place) for place in places.tolist()])

    def overlap(self, query: str, places: NDArray[np.int64]) -> Floats:
        """Part of the query's words that each title holds [D]."""
        terms = _terms(query)
        return np.array([sum(term in self._bags[place] for term in terms) / len(terms) for place in places.tolist()])

    def _score(self, terms: Sequence[str], place: int) -> float:
        bag = self._bags[place]
        norm = _BM25_K1 * (1 - _BM25_B + _BM25_B * self._lengths[place] / self._mean_length)
        return sum(self._idf[term] * bag[term] * (_BM25_K1 + 1) / (bag[term] + norm) for term in terms if term in bag)


def ranking_features(shelf: Shelf, titles: Titles, ctr: Floats, found: Candidates) -> dict[str, NDArray[np.float32]]:
    """Every feature of a query's candidates, name -> [D]; NaN is missing (not asked, not known, never shown)."""
    places = found.places
    columns = {
        "title_bm25": titles.bm25(found.query.text, places),
        "title_overlap": titles.overlap(found.query.text, places),
        "query_words": np.full(len(places), float(len(found.query.tokens))),
        **found.matched,
        "price": shelf.price[places],
        "price_to_median": shelf.price_to_median[places],
        "discount": shelf.discount[places],
        "popularity": shelf.popularity[places],
        "rating": shelf.rating[places],
        "n_ratings": shelf.n_ratings[places],
        "stock": shelf.stock[places],
        "age_days": shelf.age_days[places],
        "ctr": ctr[places],
    }
    return {name: column.astype(np.float32) for name, column in columns.items()}


def judge(rng: np.random.Generator, found: Candidates, truth: Truth) -> NDArray[np.int64]:
    """Grades 0 to 4 [D] by somebody who sees the hidden relevance, not quite sharply."""
    seen = found.attraction + rng.normal(0, truth.judge_noise, len(found.places))
    return np.searchsorted(np.array(truth.grade_bounds), seen).astype(np.int64)


def _terms(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

"""Queries by number: as many distinct ones as a run needs, and which of them comes next, all by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import prod

import numpy as np

Text = Callable[[int], str]
"""The query of a number from 0; two numbers have two queries."""

_WORDS: tuple[tuple[str, ...], ...] = (
    ("", "find", "show me", "i want to buy", "do you have", "where are the", "cheap", "new", "compare", "best", "any",
     "i am looking for"),
    ("", "red", "blue", "black", "white", "green", "grey", "pink", "brown", "navy", "yellow", "orange", "purple",
     "beige", "silver", "gold", "olive"),
    ("", "nike", "adidas", "puma", "new balance", "asics", "reebok", "levi's", "the north face", "columbia", "sony",
     "samsung", "bosch", "philips", "ikea", "lego", "canon", "dyson", "tefal", "fossil", "casio", "hp", "lenovo",
     "patagonia", "vans"),
    ("", "leather", "cotton", "wool", "steel", "wooden", "waterproof", "wireless", "kids"),
    ("shoes", "running shoes", "boots", "sandals", "t-shirt", "jacket", "jeans", "dress", "skirt", "socks", "hat",
     "backpack", "handbag", "wallet", "watch", "sunglasses", "headphones", "phone case", "laptop", "tablet", "camera",
     "tripod", "vacuum cleaner", "kettle", "toaster", "frying pan", "knife set", "desk lamp", "office chair", "sofa",
     "pillow", "blanket", "bike", "helmet", "tent", "sleeping bag", "football", "yoga mat", "dumbbells", "puzzle"),
    ("", "size 8", "size 10", "size 42", "xl", "for women", "for men", "for a birthday", "under 50", "under 100 euros",
     "on sale", "in stock", "with free delivery", "that arrive before friday", "to return", "with 2 year warranty",
     "near me", "second hand", "for my five year old", "please"),
)  # fmt: skip
_N_TEXTS = prod(map(len, _WORDS))
_STEP = 22_801_763  # prime, so it shares no factor with _N_TEXTS: every number is met once before one comes again
_SEED_STEP = 1_000_003
_PASSES_A_SEED = 1_000
_BLOCK = 4_096


def generated(seed: int) -> Text:
    """A shop's queries of one to some fifteen words: 36 million distinct ones, of which a seed begins at its own."""

    def text(number: int) -> str:
        left = (number + seed * _SEED_STEP) * _STEP % _N_TEXTS
        words = []
        for choices in _WORDS:
            left, place = divmod(left, len(choices))
            words.append(choices[place])
        return " ".join(filter(None, words))

    return text


def of_file(lines: Sequence[str], seed: int) -> Text:
    """The distinct ones of `lines` (at least one), shuffled; after the last they come again, a number behind them."""
    texts = list(dict.fromkeys(lines))
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()

    def text(number: int) -> str:
        n_passes, place = divmod(number, len(texts))
        n_passes += seed * _PASSES_A_SEED
        return f"{texts[order[place]]} {n_passes}" if n_passes else texts[order[place]]

    return text


def numbers(seed: int, *, zipf: float | None = None, n_distinct: int = 0) -> Iterator[int]:
    """Which query comes next, without end: each once, or number i of `n_distinct` with a chance ~ (i + 1)^-zipf."""
    return count() if zipf is None else _zipf(seed, zipf, n_distinct)


def _zipf(seed: int, exponent: float, n_distinct: int) -> Iterator[int]:
    generator = np.random.default_rng(seed)
    cumulated_N = np.cumsum(np.arange(1, n_distinct + 1, dtype=np.float64) ** -exponent)
    while True:
        drawn = generator.random(_BLOCK) * cumulated_N[-1]
        yield from np.minimum(np.searchsorted(cumulated_N, drawn, side="right"), n_distinct - 1).tolist()

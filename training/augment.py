"""New queries out of the training texts, for a teacher to label: what makes a small student see more than its rows.

Tang et al. 2019 ("Distilling task-specific knowledge from BERT into simple neural networks", section 3.2) replace words
and mix the n-grams of texts; here words are left out, exchanged with the next one, or replaced by a neighbour in the
teacher's own token embeddings, and the start of one text meets the end of another of the same label.

Shapes: V tokens of the vocabulary, D their dimensions, W words that stand for themselves, S neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Neighbours = Mapping[str, Sequence[str]]
"""For a word the words that are used like it, nearest first."""

_CROSS = 0.3
_DROP = 0.1
_EXCHANGE = 0.05
_REPLACE = 0.2
_TRIES = 20
_AT_ONCE = 1024


def augment(
    texts: Sequence[str], groups: Sequence[str], n_wanted: int, neighbours: Neighbours, seed: int
) -> tuple[str, ...]:
    """Give up to `n_wanted` different texts, none of them among `texts`; groups: the label of each text.

    Fewer where so many cannot be found. Repeatable by `seed`.
    """
    generator = np.random.default_rng(seed)
    words = [text.split() for text in texts]
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    seen = {" ".join(one) for one in words}
    found: list[str] = []
    for _ in range(_TRIES):
        for index in generator.integers(len(texts), size=n_wanted).tolist():
            if len(found) == n_wanted:
                return tuple(found)
            made = words[index]
            if generator.random() < _CROSS:
                made = _crossed(made, words[int(generator.choice(members[groups[index]]))], generator)
            text = " ".join(_changed(made, neighbours, generator))
            if text and text not in seen:
                seen.add(text)
                found.append(text)
    return tuple(found)


def neighbours_of(
    texts: Iterable[str], tokenizer: Tokenizer, table_VD: NDArray[np.float32], n_neighbours: int = 8
) -> dict[str, tuple[str, ...]]:
    """Find for the words of `texts` that are one token the nearest such words of the vocabulary, by cosine."""
    tokens = {token: tokenizer.decode([token]).strip() for token in range(len(table_VD))}
    own = {token: word for token, word in tokens.items() if word.isalpha() and _ids(tokenizer, word) == [token]}
    places = {word: place for place, word in enumerate(own.values())}
    vectors_WD = table_VD[list(own)]
    vectors_WD = vectors_WD / np.maximum(np.linalg.norm(vectors_WD, axis=1, keepdims=True), 1e-12)
    vocabulary = list(places)
    wanted = sorted({word for text in texts for word in text.split()} & places.keys())
    found: dict[str, tuple[str, ...]] = {}
    for begin in range(0, len(wanted), _AT_ONCE):
        some = wanted[begin : begin + _AT_ONCE]
        rows = [places[word] for word in some]
        likeness = vectors_WD[rows] @ vectors_WD.T
        likeness[np.arange(len(rows)), rows] = -np.inf
        n_kept = min(n_neighbours, len(vocabulary) - 1)
        nearest = np.argpartition(-likeness, n_kept, axis=1)[:, :n_kept]
        order = np.argsort(-np.take_along_axis(likeness, nearest, axis=1), axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, axis=1)
        found |= {word: tuple(vocabulary[i] for i in row) for word, row in zip(some, nearest.tolist(), strict=True)}
    return found


def _ids(tokenizer: Tokenizer, word: str) -> list[int]:
    ids: list[int] = tokenizer.encode(word, add_special_tokens=False).ids
    return ids


def _crossed(first: Sequence[str], second: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Join the start of `first` and the end of `second`, each cut at a random place."""
    end, start = (int(generator.integers(len(words) + 1)) for words in (first, second))
    return [*first[:end], *second[start:]]


def _changed(words: Sequence[str], neighbours: Neighbours, generator: np.random.Generator) -> list[str]:
    chances = generator.random((len(words), 3))
    changed: list[str] = []
    for word, (drop, exchange, replace) in zip(words, chances.tolist(), strict=True):
        if drop < _DROP:
            continue
        near = neighbours.get(word, ())
        changed.append(near[int(generator.integers(len(near)))] if near and replace < _REPLACE else word)
        if exchange < _EXCHANGE and len(changed) > 1:
            changed[-2:] = changed[:-3:-1]
    return changed

"""Terms that a shop knows (brands, product types, ...), found in a text word by word: a hint to the network, no more.

Shapes: W words, G types of terms.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batch import Word
from models.errors import BundleError

GAZETTEER = "gazetteer.json"
INPUT = "gazetteer"
"""The model input: for each token the bits of its word."""

MAX_TYPES = 31
"""Two bits a type in one signed 64-bit number."""

_AROUND = ",.!?;:\"'`“”‘’«»()[]"


class _Node:
    """A place in the tree of terms: the words that may follow, and the bits of the types whose terms end here."""

    __slots__ = ("ends", "next")

    def __init__(self) -> None:
        self.next: dict[str, _Node] = {}
        self.ends = 0


class Gazetteer:
    """Terms by type, in a tree of words (a trie; the longest match at every word, as Aho and Corasick 1975 find them).

    terms: type -> terms. Upper and lower case, and punctuation around a word, make no difference.
    """

    def __init__(self, terms: Mapping[str, Iterable[str]]) -> None:
        self.terms = {name: tuple(sorted(set(of_type))) for name, of_type in sorted(terms.items())}
        self.types = tuple(self.terms)
        self._root = _Node()
        for place, of_type in enumerate(self.terms.values()):
            for term in of_type:
                self._add([_plain(word) for word in term.split()], 1 << (2 * place))

    @classmethod
    def load(cls, directory: Path) -> Gazetteer:
        """Read a bundle's `gazetteer.json`; BundleError where it is absent or broken."""
        file = directory / GAZETTEER
        try:
            raw: Any = json.loads(file.read_text(encoding="utf-8"))
            return cls({name: [str(term) for term in terms] for name, terms in raw.items()})
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise BundleError(f"{file} must hold terms by type as written by training, got: {error!r}") from error

    def save(self, directory: Path) -> None:
        """Write `gazetteer.json`: {type: [term, ...]}; equal gazetteers give equal bytes."""
        (directory / GAZETTEER).write_text(json.dumps(self.terms, ensure_ascii=False, indent=0) + "\n", "utf-8")

    def match(self, words: Sequence[Word]) -> NDArray[np.int64]:
        """Bits [W] of every word: bit 2g where a term of type g begins at it, bit 2g + 1 where one goes on.

        Terms of one type do not overlap: from left to right, the longest one that begins outside the one before.
        """
        plain = [_plain(word.text) for word in words]
        bits_W = [0] * len(words)
        free_from = dict.fromkeys((1 << (2 * place) for place in range(len(self.types))), 0)
        for start in range(len(words)):
            for bit, end in self._longest(plain, start).items():
                if start >= free_from[bit]:
                    free_from[bit] = end
                    bits_W[start] |= bit
                    for word in range(start + 1, end):
                        bits_W[word] |= bit << 1
        return np.array(bits_W, dtype=np.int64)

    def _longest(self, plain: Sequence[str], start: int) -> dict[int, int]:
        """For each type that has a term at `start`, by its bit, where its longest one ends."""
        ends: dict[int, int] = {}
        node, place = self._root, start
        while place < len(plain) and (following := node.next.get(plain[place])) is not None:
            node, place = following, place + 1
            bits = node.ends
            while bits:
                bit = bits & -bits
                ends[bit] = place
                bits ^= bit
        return ends

    def _add(self, words: Sequence[str], bit: int) -> None:
        node = self._root
        for word in words:
            node = node.next.setdefault(word, _Node())
        if words:
            node.ends |= bit


def _plain(word: str) -> str:
    lower = word.lower() if word.isascii() else unicodedata.normalize("NFKC", word).casefold()
    return lower.strip(_AROUND) or lower

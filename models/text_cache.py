"""What was computed of texts, kept for those who ask again: a catalogue's titles cost once, not once a request.

An entry belongs to a text and to the encoder that read it, both by content, so it can never be out of date: a title
that changes with the catalogue is another text, and an encoder that changes with the model is another encoder. A new
version of a catalogue, or of a model with the same encoder, finds everything that stayed the same.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from sys import getsizeof

import numpy as np
from numpy.typing import NDArray

from models.lexical import Reading

_ENTRY_BYTES = 300
"""What an entry takes in the dictionary itself, with its key's tuple and its size, measured with tracemalloc."""


@dataclass(frozen=True, slots=True)
class KnownText:
    """A text's words and its vector [E] float32, None where it has none."""

    reading: Reading
    vector: NDArray[np.float32] | None


class TextCache:
    """Texts as encoders read them, at most `max_bytes` (None: all); the one not asked for the longest time goes first.

    Several featurizers may share one, and several threads.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._known: OrderedDict[tuple[str, str], tuple[KnownText, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.n_bytes = self.n_hits = self.n_misses = self.n_dropped = 0

    def __len__(self) -> int:
        return len(self._known)

    def has(self, encoder: str, text: str) -> bool:
        """Whether it is known; asking so makes it no younger."""
        return (encoder, text) in self._known

    def get(self, encoder: str, text: str) -> KnownText | None:
        """Give what `encoder`, named by its digest, read of `text`."""
        with self._lock:
            found = self._known.get((encoder, text))
            if found is None:
                self.n_misses += 1
                return None
            self.n_hits += 1
            self._known.move_to_end((encoder, text))
            return found[0]

    def put(self, encoder: str, text: str, known: KnownText) -> None:
        """Keep it, until others need its place."""
        # Kept beside it: a string's size grows when somebody asks for its UTF-8.
        n_bytes = _size(text, known)
        with self._lock:
            if (encoder, text) in self._known:
                return
            self._known[encoder, text] = known, n_bytes
            self.n_bytes += n_bytes
            while self._max_bytes is not None and self.n_bytes > self._max_bytes:
                _, (_, freed) = self._known.popitem(last=False)
                self.n_bytes -= freed
                self.n_dropped += 1


def _size(text: str, known: KnownText) -> int:
    """Bytes of an entry; words are counted for every text that has them, though texts share them."""
    reading = known.reading
    owned: list[object] = [text, known, reading, reading.words, reading.terms, reading.trigrams, known.vector]
    return sum(map(getsizeof, (*owned, *{*reading.words, *reading.terms}))) + _ENTRY_BYTES

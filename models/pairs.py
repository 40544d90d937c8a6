"""A query and a candidate's text as one row of tokens: what a cross-encoder reads.

Shapes: D texts, T tokens of the longest pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.batch import Encoded
from models.errors import InputError
from models.text import CHARACTERS_A_TOKEN, check_whole, open_tokenizer, special_tokens
from models.words import WordTable


class PairEncoder:
    """Reads (query, text) by `tokenizer.json`'s template of a pair; only the text is cut, to `max_tokens` in all.

    is_apart: by the template of a single text each, one behind the other. pad: what `input_ids` holds behind a pair
    that is shorter than the longest of its list.
    A special token's name in a user's text is read as plain text. Several threads may call it at once.
    """

    def __init__(self, tokenizer_json: Path, max_tokens: int, pad: int, *, is_apart: bool = False) -> None:
        tokenizer = open_tokenizer(tokenizer_json)
        self._table = WordTable(tokenizer)
        self.n_ids: int = tokenizer.get_vocab_size()
        """Numbers that `input_ids` may hold, from 0."""
        self._max_tokens = max_tokens
        self._pad = pad
        self._n_characters = CHARACTERS_A_TOKEN * max_tokens
        both = [tokenizer.encode("a")] * 2 if is_apart else [tokenizer.encode("a", "a")]
        self._head, self._middle, self._tail = special_tokens(tokenizer, both, 2)
        special = [*self._head, *self._middle, *self._tail]
        self._n_special = len(special)
        self.separator = special[-1] if special else -1
        """The token that ends the query."""

    def encode(self, query: str, texts: Sequence[str]) -> Encoded:
        """Give `input_ids` and `attention_mask` int64 [D, T]; InputError where the query leaves a text no token."""
        rows = self._rows(query, texts)
        longest = max(map(len, rows), default=0)
        input_ids_DT = np.full((len(rows), longest), self._pad, dtype=np.int64)
        attention_mask_DT = np.zeros((len(rows), longest), dtype=np.int64)
        for place, ids in enumerate(rows):
            input_ids_DT[place, : len(ids)] = ids
            attention_mask_DT[place, : len(ids)] = 1
        return Encoded({"input_ids": input_ids_DT, "attention_mask": attention_mask_DT})

    def n_cut(self, query: str, texts: Sequence[str]) -> int:
        """How many of `texts` lose their end."""
        (first,) = self._ids([query])
        room = self._max_tokens - len(first) - self._n_special
        ids = self._ids([text[: self._n_characters] for text in texts])
        return sum(len(text) > self._n_characters or len(its) > room for text, its in zip(texts, ids, strict=True))

    def _rows(self, query: str, texts: Sequence[str]) -> list[list[int]]:
        (first,) = self._ids([query])
        room = self._max_tokens - len(first) - self._n_special
        if room < 1:
            raise InputError(
                f"a query must have at most {self._max_tokens - self._n_special - 1} tokens for this model, which "
                f"reads {self._max_tokens} with the candidate's text, got {len(first)}; shorten it",
                field="query.text",
            )
        before = [*self._head, *first, *self._middle]
        # No token is shorter than a character: what lies behind so many is cut in any case.
        seconds = self._ids([text[: self._n_characters] for text in texts])
        return [[*before, *second[:room], *self._tail] for second in seconds]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            check_whole(text)
        return self._table.read_all(texts)


def trimmed(encoded: Encoded, rows: NDArray[np.int64]) -> Encoded:
    """These documents alone, without the padding that only others need."""
    longest = int(encoded.arrays["attention_mask"][rows].sum(axis=1).max())
    return Encoded({name: array[rows, :longest] for name, array in encoded.arrays.items()})


def blocks(encoded: Encoded, n_rows: int, *, in_order: bool = False) -> list[NDArray[np.int64]]:
    """Documents of a list in blocks of at most `n_rows`, of like length: padding within a list is wasted work.

    in_order: as they come instead, for those who may not get to the end.
    """
    lengths_D = encoded.arrays["attention_mask"].sum(axis=1)
    order_D = np.arange(len(lengths_D)) if in_order else np.argsort(lengths_D, kind="stable")
    return np.split(order_D, range(n_rows, len(order_D), n_rows))

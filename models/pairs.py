"""A query and a candidate's text as one row of tokens: what a cross-encoder reads.

Shapes: D texts, T tokens of the longest pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from models.batch import Encoded
from models.errors import InputError
from models.text import CHARACTERS_A_TOKEN, check_whole, open_tokenizer


class PairEncoder:
    """Reads (query, text) by `tokenizer.json`'s template of a pair; only the text is cut, to `max_tokens` in all.

    is_apart: by the template of a single text each, one behind the other. pad: what `input_ids` holds behind a pair
    that is shorter than the longest of its list.
    A special token's name in a user's text is read as plain text. Several threads may call it at once.
    """

    def __init__(self, tokenizer_json: Path, max_tokens: int, pad: int, *, is_apart: bool = False) -> None:
        self._tokenizer = open_tokenizer(tokenizer_json)
        self.n_ids: int = self._tokenizer.get_vocab_size()
        """Numbers that `input_ids` may hold, from 0."""
        self._is_apart = is_apart
        self._max_tokens = max_tokens
        self._pad = pad
        self._n_characters = CHARACTERS_A_TOKEN * max_tokens
        nothing = self._tokenizer.encode("", add_special_tokens=False)
        empty = self._joined(nothing, nothing)
        self._n_special = len(empty)
        self.separator = int(empty[-1]) if empty else -1
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
        room = self._max_tokens - len(self._ids(query)) - self._n_special
        return sum(len(text) > self._n_characters or len(self._ids(text)) > room for text in texts)

    def _rows(self, query: str, texts: Sequence[str]) -> list[list[int]]:
        first = self._tokenizer.encode(_whole(query), add_special_tokens=False)
        room = self._max_tokens - len(first) - self._n_special
        if room < 1:
            raise InputError(
                f"a query must have at most {self._max_tokens - self._n_special - 1} tokens for this model, which "
                f"reads {self._max_tokens} with the candidate's text, got {len(first)}; shorten it",
                field="query.text",
            )
        # No token is shorter than a character: what lies behind so many is cut in any case.
        seconds = self._tokenizer.encode_batch(
            [_whole(text[: self._n_characters]) for text in texts], add_special_tokens=False
        )
        rows = []
        for second in seconds:
            second.truncate(room)
            rows.append(self._joined(first, second))
        return rows

    def _joined(self, first: Encoding, second: Encoding) -> list[int]:
        if self._is_apart:
            return [*self._tokenizer.post_process(first).ids, *self._tokenizer.post_process(second).ids]
        ids: list[int] = self._tokenizer.post_process(first, second).ids
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(_whole(text), add_special_tokens=False).ids
        return ids


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


def _whole(text: str) -> str:
    check_whole(text)
    return text

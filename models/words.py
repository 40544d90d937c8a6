"""Tokens of words that have come before, where a tokenizer reads each word by itself: BERT's and its kin's do.

A shop uses the same words again and again: what that saves, and what new ones cost, is in `experiments/text_reading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

_MOST_WORDS = 20_000
_LONGEST = 32
"""Characters of a word that is remembered: filled by a hostile caller the table takes 21 MB."""


class WordTable:
    """Remembers the tokens of words; several threads may call it at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._reads_words = reads_words(tokenizer)
        self._tokens: dict[str, list[int]] = {}

    def reads(self, text: str) -> bool:
        """Whether this text's tokens are those of its words, split at blanks: where all of it can be seen in ASCII."""
        return self._reads_words and text.isascii() and text.isprintable()

    def read(self, text: str) -> list[int] | None:
        """Tokens of a text that the table reads, without special ones; None of any other."""
        return [*chain.from_iterable(map(self.tokens, text.split()))] if self.reads(text) else None

    def read_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of every text, without special ones; what the table does not read the tokenizer reads at once."""
        found = [self.read(text) for text in texts]
        others = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        encoded = iter(self._tokenizer.encode_batch(others, add_special_tokens=False))
        return [next(encoded).ids if ids is None else ids for ids in found]

    def tokens(self, word: str) -> list[int]:
        """The word's tokens, without special ones; not to be changed."""
        tokens = self._tokens.get(word)
        if tokens is None:
            tokens = self._tokenizer.encode(word, add_special_tokens=False).ids
            if len(word) <= _LONGEST:
                if len(self._tokens) >= _MOST_WORDS:
                    self._tokens.clear()
                self._tokens[word] = tokens
        return tokens


def reads_words(tokenizer: Tokenizer) -> bool:
    """Whether no token, and nothing that makes one, reaches over a blank; known of BERT's parts alone."""
    return (
        isinstance(tokenizer.normalizer, BertNormalizer | None)
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        and isinstance(tokenizer.model, WordPiece)
        and all(token.special for token in tokenizer.get_added_tokens_decoder().values())
    )

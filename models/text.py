"""From a user's text to what a model reads: words with offsets, hashed n-grams or sub-word tokens.

Training and the gateway both call these functions, so that a model serves what it was trained on. T: tokens of a
text, L: different n-grams of a text.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from models.batch import Encoded, Word
from models.errors import BundleError, InputError
from models.manifest import NgramText

MAX_NGRAM_CHARACTERS = 2_000
"""Longest text of an n-gram model: its cost grows with every character, and queries are far shorter."""

CHARACTERS_A_TOKEN = 20
"""A text of more than this many characters for each allowed token is refused before any work is done on it."""

_WORD = re.compile(r"\S+")
_SPACE = ord(" ")

# Start values of the two kinds of n-gram, which keep "red" the characters apart from "red" the word.
_CHARACTERS = np.uint64(0xCBF29CE484222325)
_WORDS = np.uint64(0x9AE16A3B_00000000)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_HALF = np.uint64(32)


def split_words(text: str) -> tuple[Word, ...]:
    """Give the words of a text, split at whitespace: `text[word.start:word.end] == word.text`."""
    return tuple(Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text))


def ngram_ids(text: str, settings: NgramText) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Count a text's hashed n-grams: sorted different ids [L] below `n_buckets`, and their counts [L].

    The text is normalized (NFKC, casefold, whitespace collapsed). Character n-grams lie within one word and the blank
    on each side of it, as scikit-learn's `char_wb` (which also keeps words shorter than the n-gram; here their word
    n-gram stands for them). Word n-grams are neighbouring words joined by a blank. A text without n-grams gives L = 0.

    Ids depend on the text alone, never on the machine: 64-bit multiplicative hashing of code points (Knuth, TAOCP 3,
    6.4) for characters, CRC-32 for words, both finished with the mixer of MurmurHash3.
    """
    plain = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    words = plain.split()
    if not words:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    padded = f" {' '.join(words)} "
    hashes = _character_ngrams(padded, *settings.char_ngrams)
    hashes.append(_word_ngrams(words, *settings.word_ngrams))
    return _count(np.concatenate(hashes), settings.n_buckets)


def _character_ngrams(padded: str, shortest: int, longest: int) -> list[NDArray[np.uint64]]:
    codes = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    is_letter = codes != _SPACE
    found: list[NDArray[np.uint64]] = []
    hashes = np.full(len(codes), _CHARACTERS)
    is_inside = is_letter
    for length in range(1, min(longest, len(codes)) + 1):
        # `hashes[i]` grows to cover codes[i : i + length]; blanks may stand at its two ends only.
        hashes = (hashes[: len(codes) - length + 1] ^ codes[length - 1 :]) * _STEP
        if length == 2:
            is_inside = np.ones(len(hashes), dtype=np.bool_)
        elif length > 2:
            is_inside = is_inside[:-1] & is_letter[length - 2 : -1]
        if length >= shortest:
            found.append(hashes[is_inside])
    return found


def _word_ngrams(words: Sequence[str], shortest: int, longest: int) -> NDArray[np.uint64]:
    sums = [
        zlib.crc32(" ".join(words[start : start + length]).encode("utf-8", "surrogatepass"))
        for length in range(shortest, min(longest, len(words)) + 1)
        for start in range(len(words) - length + 1)
    ]
    return np.array(sums, dtype=np.uint64) | _WORDS


def _count(hashes: NDArray[np.uint64], n_buckets: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    mixed = (hashes ^ (hashes >> _HALF)) * _MIX
    ids = ((mixed ^ (mixed >> _HALF)) % np.uint64(n_buckets)).astype(np.int64)
    ids.sort()
    is_first = np.empty(len(ids), dtype=np.bool_)
    is_first[:1] = True
    np.not_equal(ids[1:], ids[:-1], out=is_first[1:])
    starts = np.flatnonzero(is_first)
    counts = np.empty(len(starts), dtype=np.float32)
    counts[:-1] = starts[1:] - starts[:-1]
    counts[-1:] = len(ids) - starts[-1:]
    return ids[starts], counts


class NgramEncoder:
    """Reads a text as hashed n-grams: `ngram_ids` int64 [L] and `ngram_counts` float32 [L].

    A text without n-grams, such as an empty one, is read as one n-gram that no model knows, with count 0.
    """

    def __init__(self, settings: NgramText) -> None:
        self._settings = settings

    def encode(self, text: str) -> Encoded:
        """Encode one text; InputError beyond MAX_NGRAM_CHARACTERS."""
        _check_characters(text, MAX_NGRAM_CHARACTERS, "")
        ids, counts = ngram_ids(text, self._settings)
        if not len(ids):
            ids, counts = np.array([self._settings.n_buckets]), np.zeros(1, np.float32)
        return Encoded({"ngram_ids": ids, "ngram_counts": counts})


class SubwordEncoder:
    """Reads a text as sub-word tokens: `input_ids` and `attention_mask`, both int64 [T].

    A text that is too long is refused, never cut. An empty or blank one is its special tokens alone (CLS SEP).
    A special token's name in a user's text is read as plain text.
    """

    def __init__(self, tokenizer_json: Path, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # the Rust tokenizer raises bare Exception
            raise BundleError(f"{tokenizer_json} must be a tokenizer, got: {error}; export the model again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._max_tokens = max_tokens

    def encode(self, text: str) -> Encoded:
        """Encode one text; InputError beyond `max_tokens` tokens, special ones counted."""
        return Encoded(_token_arrays(self._tokens(text)))

    def encode_words(self, text: str, words: Sequence[Word]) -> Encoded:
        """Encode as `encode` does, and note at which token each word of `split_words(text)` begins.

        A word that yields no token, such as a lone control character, has first piece -1.
        """
        encoding = self._tokens(text)
        first_pieces = [-1] * len(words)
        word = 0
        for piece, (start, end) in enumerate(encoding.offsets):
            if start == end:  # a special token
                continue
            # Byte-level tokenizers count the blank before a word as part of it: a token's last character is decisive.
            while word < len(words) and words[word].end < end:
                word += 1
            if word < len(words) and words[word].start < end and first_pieces[word] < 0:
                first_pieces[word] = piece
        return Encoded(_token_arrays(encoding), words=tuple(words), first_pieces=tuple(first_pieces))

    def _tokens(self, text: str) -> Encoding:
        _check_characters(
            text,
            CHARACTERS_A_TOKEN * self._max_tokens,
            f" ({CHARACTERS_A_TOKEN} for each of {self._max_tokens} tokens)",
        )
        encoding = self._tokenizer.encode(text)
        n_tokens = len(encoding)
        if n_tokens > self._max_tokens:
            raise InputError(
                f"a text must have at most {self._max_tokens} tokens, got {n_tokens}; shorten it", field="query"
            )
        if not n_tokens:
            raise InputError(f"a text must have at least one token for this model, got {text!r}", field="query")
        return encoding


def _token_arrays(encoding: Encoding) -> dict[str, NDArray[np.int64]]:
    input_ids = np.array(encoding.ids, dtype=np.int64)
    return {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}


def _check_characters(text: str, most: int, because: str) -> None:
    if len(text) > most:
        raise InputError(
            f"a text must have at most {most} characters{because}, got {len(text)}; shorten it", field="query"
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"a text must be whole Unicode characters, got a lone surrogate at position {error.start}; send UTF-8",
                field="query",
            ) from error

"""From a user's text to what a model reads: words with offsets, hashed n-grams or sub-word tokens.

Training and the gateway both call these functions, so that a model serves what it was trained on. T: tokens of a
text, L: different n-grams of a text.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from models.batch import Encoded, Word
from models.errors import BundleError, InputError
from models.manifest import NgramText
from models.words import WordTable

MAX_NGRAM_CHARACTERS = 2_000
"""Longest text of an n-gram model: its cost grows with every character, and queries are far shorter."""

CHARACTERS_A_TOKEN = 20
"""A text of more than this many characters for each allowed token is refused before any work is done on it."""

_NONE: Mapping[str, NDArray[np.int64]] = MappingProxyType({})

_OVERLAP = 4
"""Windows share a quarter of their tokens, so that every word has an eighth of a window on each side of it."""

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
        self.n_ids = settings.n_buckets + 1
        """Numbers that `ngram_ids` may hold, from 0: the buckets, and the one that pads."""

    def encode(self, text: str) -> Encoded:
        """Encode one text; InputError beyond MAX_NGRAM_CHARACTERS."""
        _check_characters(text, MAX_NGRAM_CHARACTERS, "")
        ids, counts = ngram_ids(text, self._settings)
        if not len(ids):
            ids, counts = np.array([self._settings.n_buckets]), np.zeros(1, np.float32)
        return Encoded({"ngram_ids": ids, "ngram_counts": counts})


def open_tokenizer(tokenizer_json: Path) -> Tokenizer:
    """Read a tokenizer that neither pads nor cuts, whatever its file says; BundleError where it cannot be read.

    A special token's name in a user's text is read as plain text.
    """
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_json))
    except Exception as error:  # the Rust tokenizer raises bare Exception
        raise BundleError(f"{tokenizer_json} must be a tokenizer, got: {error}; train the model again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def special_tokens(tokenizer: Tokenizer, encodings: Sequence[Encoding], n_texts: int) -> list[list[int]]:
    """Special tokens before, between and behind the texts of some encodings, each of which is "a"."""
    n = len(tokenizer.encode("a", add_special_tokens=False))
    ids = [token for encoding in encodings for token in encoding.ids]
    is_special = [*(mask for encoding in encodings for mask in encoding.special_tokens_mask), 0]
    found, place = [], 0
    for _ in range(n_texts):
        begin = is_special.index(0, place)
        found.append(ids[place:begin])
        place = begin + n
    return [*found, ids[place:]]


class SubwordEncoder:
    """Reads a text as sub-word tokens: `input_ids` and `attention_mask`, both int64 [T].

    A text that is too long is read in windows where `max_windows` allows them, [windows, T], and refused otherwise,
    never cut. An empty or blank one is its special tokens alone (CLS SEP). A special token's name in a user's text is
    read as plain text.
    """

    def __init__(self, tokenizer_json: Path, max_tokens: int, max_windows: int = 1) -> None:
        self._tokenizer = open_tokenizer(tokenizer_json)
        self._table = WordTable(self._tokenizer)
        self.n_ids: int = self._tokenizer.get_vocab_size()
        """Numbers that `input_ids` may hold, from 0."""
        self._max_tokens = max_tokens
        self._max_windows = max_windows
        self._head, self._tail = special_tokens(self._tokenizer, [self._tokenizer.encode("a")], 1)

    def encode(self, text: str) -> Encoded:
        """Encode one text; InputError beyond `max_tokens` tokens, special ones counted, in `max_windows` windows."""
        self._check(text)
        read = self._table.read(text)
        ids = self._tokenizer.encode(text).ids if read is None else [*self._head, *read, *self._tail]
        self._check_tokens(text, len(ids))
        if len(ids) > self._max_tokens:
            return self.encode_words(text, split_words(text))
        return Encoded(_token_arrays(ids))

    def encode_words(
        self, text: str, words: Sequence[Word], word_inputs: Mapping[str, NDArray[np.int64]] = _NONE
    ) -> Encoded:
        """Encode as `encode` does, and note at which token each word of `split_words(text)` begins.

        A word that yields no token, such as a lone control character, has first piece -1.
        word_inputs: further inputs, a number a word [W]; each token gets that of its word, a special token 0.
        """
        self._check(text)
        if self._table.reads(text):
            ids, word_T, first_pieces = self._by_word(words)
        else:
            encoding = self._tokenizer.encode(text)
            ids, (word_T, first_pieces) = encoding.ids, _align(encoding, words)
        self._check_tokens(text, len(ids))
        arrays = _token_arrays(ids)
        for name, numbers_W in word_inputs.items():
            arrays[name] = np.append(numbers_W, 0)[word_T]
        if len(ids) > self._max_tokens:
            return self._windows(arrays, tuple(words), first_pieces, len(ids))
        return Encoded(arrays, words=tuple(words), first_pieces=tuple(first_pieces))

    def _by_word(self, words: Sequence[Word]) -> tuple[list[int], list[int], list[int]]:
        """Tokens of a text, and what `_align` says of them."""
        ids, first_pieces = [*self._head], []
        word_T = [-1] * len(ids)
        for place, word in enumerate(words):
            tokens = self._table.tokens(word.text)
            first_pieces.append(len(ids) if tokens else -1)
            ids += tokens
            word_T += [place] * len(tokens)
        return [*ids, *self._tail], [*word_T, *[-1] * len(self._tail)], first_pieces

    def _windows(
        self, arrays: dict[str, NDArray[np.int64]], words: tuple[Word, ...], first_pieces: list[int], n_tokens: int
    ) -> Encoded:
        """Lay the tokens of a long text out in overlapping rows, each between the special tokens that the text has.

        Rows begin and end at words. A word is read in the row in which it has more words on its nearer side.
        """
        head, end = len(self._head), n_tokens - len(self._tail)
        begins_W = _begins(first_pieces, end)
        rows = self._rows(begins_W, room=self._max_tokens - head - (n_tokens - end), n_tokens=n_tokens)
        tokens = [
            [*range(head), *range(begins_W[first], begins_W[last]), *range(end, n_tokens)] for first, last in rows
        ]
        joined = {name: np.zeros((len(rows), max(map(len, tokens))), dtype=np.int64) for name in arrays}
        for row, places in enumerate(tokens):
            for name, array in arrays.items():
                joined[name][row, : len(places)] = array[places]
        word_windows = np.zeros(len(words), dtype=np.int64)
        for (first, _), (_, last) in zip(rows[1:], rows[:-1], strict=True):
            word_windows[(first + last + 1) // 2 :] += 1
        places_W = [
            first - begins_W[rows[row][0]] + head if first >= 0 else -1
            for first, row in zip(first_pieces, word_windows.tolist(), strict=True)
        ]
        return Encoded(joined, words, tuple(places_W), tuple(word_windows.tolist()), n_windows=len(rows))

    def _rows(self, begins_W: list[int], room: int, n_tokens: int) -> list[tuple[int, int]]:
        """Give each window's first and last (exclusive) word: as many as fit, a quarter of them from the row before."""
        rows: list[tuple[int, int]] = []
        first, last, n_words = 0, 0, len(begins_W) - 1
        while last < n_words:
            last = bisect_right(begins_W, begins_W[first] + room) - 1
            if last == first:
                n_pieces = begins_W[first + 1] - begins_W[first]
                raise InputError(f"a word must have at most {room} tokens, got {n_pieces}; shorten it", field="query")
            rows.append((first, last))
            if last < n_words:
                shared = bisect_left(begins_W, begins_W[last] - room // _OVERLAP)
                first = min(last, max(shared, bisect_left(begins_W, begins_W[last + 1] - room)))
        if not 0 < len(rows) <= self._max_windows:
            raise InputError(
                f"a text must have at most {self._max_tokens} tokens in each of {self._max_windows} windows, "
                f"got {n_tokens}; shorten it",
                field="query",
            )
        return rows

    def _check(self, text: str) -> None:
        _check_characters(
            text,
            CHARACTERS_A_TOKEN * self._max_tokens * self._max_windows,
            f" ({CHARACTERS_A_TOKEN} for each of {self._max_tokens * self._max_windows} tokens)",
        )

    def _check_tokens(self, text: str, n_tokens: int) -> None:
        if n_tokens > self._max_tokens and self._max_windows == 1:
            raise InputError(
                f"a text must have at most {self._max_tokens} tokens, got {n_tokens}; shorten it", field="query"
            )
        if not n_tokens:
            raise InputError(f"a text must have at least one token for this model, got {text!r}", field="query")


def _token_arrays(ids: list[int]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": np.array(ids, dtype=np.int64), "attention_mask": np.array([1] * len(ids), dtype=np.int64)}


def _align(encoding: Encoding, words: Sequence[Word]) -> tuple[list[int], list[int]]:
    """For each token the word that it is a piece of, for each word its first piece; -1 where there is none."""
    word_T: list[int] = []
    first_pieces = [-1] * len(words)
    word = 0
    for piece, (start, end) in enumerate(encoding.offsets):
        # Byte-level tokenizers count the blank before a word as part of it: a token's last character is decisive.
        while word < len(words) and words[word].end < end:
            word += 1
        # A special token is empty.
        if start < end and word < len(words) and words[word].start < end:
            word_T.append(word)
            if first_pieces[word] < 0:
                first_pieces[word] = piece
        else:
            word_T.append(-1)
    return word_T, first_pieces


def _begins(first_pieces: Sequence[int], end: int) -> list[int]:
    """Token at which each word begins, and `end`; a word without tokens begins, and ends, where the next one does."""
    begins = [end]
    for first in reversed(first_pieces):
        begins.append(first if first >= 0 else begins[-1])
    return begins[::-1]


def _check_characters(text: str, most: int, because: str) -> None:
    if len(text) > most:
        raise InputError(
            f"a text must have at most {most} characters{because}, got {len(text)}; shorten it", field="query"
        )
    check_whole(text, field="query")


def check_whole(text: str, field: str | None = None) -> None:
    """Refuse half a character, which no tokenizer reads; InputError."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"a text must be whole Unicode characters, got a lone surrogate at position {error.start}; send UTF-8",
            field=field,
        ) from error

"""How long texts are, in characters, words and (where the model reads tokens) tokens, and which are too long for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from models.text import MAX_NGRAM_CHARACTERS, open_tokenizer
from training.checks.finding import Cell, Chart, Finding, count, examples, verb
from training.config import TrainConfig, TransformerModel

_EDGES = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 1000)
"""Words of a text at which a column of the chart begins."""
_CHARACTERS_A_TOKEN = 1
"""A text has at most as many tokens as characters, and two more: shorter ones need no tokenizer."""
_SPECIAL_TOKENS = 8
_MAX_TOKENIZED = 20_000
"""Texts of one split that are tokenized at most: the longest ones."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """What the configured model takes at most, and the texts of a split that exceed it."""

    most: int
    unit: str
    key: str


def lengths(texts: Mapping[str, Sequence[str]], config: TrainConfig) -> list[Finding]:
    """Find the distribution of lengths in every split, and the texts that are longer than the model takes.

    texts: split -> texts.
    """
    words = {name: np.array([len(text.split()) for text in split]) for name, split in texts.items()}
    characters = np.array([len(text) for text in texts["train"]])
    low, middle, high = np.percentile(words["train"], (5, 50, 95)).astype(int)
    sentence = (
        f"half of the train texts have at most {count(middle, 'word')}, 90 % have {low} to {high}, the longest has "
        f"{count(int(words['train'].max()), 'word')} and {count(int(characters.max()), 'character')}"
    )
    note = Finding("lengths", "note", float(middle), sentence, chart=_chart(words))
    return [note, *_too_long(texts, config)]


def _chart(words: Mapping[str, NDArray[np.int64]]) -> Chart:
    longest = max(int(of_split.max()) for of_split in words.values())
    edges = [edge for edge in _EDGES if edge <= max(longest, 1)]
    last = [edge - 1 for edge in edges[1:]]
    names = [str(low) if low == high else f"{low}–{high}" for low, high in zip(edges, last, strict=False)]
    names.append(str(edges[-1]) if longest <= edges[-1] else f"{edges[-1]}+")
    series = {}
    for name, of_split in words.items():
        places = np.searchsorted(edges, np.maximum(of_split, edges[0]), side="right") - 1
        series[name] = tuple((np.bincount(places, minlength=len(edges)) / len(of_split) * 100).tolist())
    return Chart("words of a text, share of each split in %", tuple(names), series, "%", "columns")


def _too_long(texts: Mapping[str, Sequence[str]], config: TrainConfig) -> list[Finding]:
    limit, found = _limit(config), []
    if limit is None:
        return []
    for name, split in texts.items():
        sizes = _sizes(split, limit, config)
        if over := {row: size for row, size in sizes.items() if size > limit.most}:
            longest = sorted(over, key=lambda row: -over[row])
            rows: list[dict[str, Cell]] = [
                {"row": row + 1, limit.unit: over[row], "text": split[row]} for row in longest
            ]
            sentence = (
                f"{count(len(over), 'text')} of {name} {verb(len(over), 'has', 'have')} more than the "
                f"{limit.most:,} {limit.unit} that the model takes{limit.key}: shorten them or take them out"
            )
            found.append(Finding(f"too_long_{name}", "warning", len(over), sentence, examples(rows)))
    return found


def _limit(config: TrainConfig) -> _Limit | None:
    if config.model.kind == "linear":
        return _Limit(MAX_NGRAM_CHARACTERS, "characters", "")
    # A model that reads windows takes more, and a cross-encoder cuts titles.
    if isinstance(config.model, TransformerModel) and config.model.max_windows == 1:
        return _Limit(config.model.max_tokens, "tokens", f" (model.max_tokens {config.model.max_tokens})")
    return None


def _sizes(split: Sequence[str], limit: _Limit, config: TrainConfig) -> dict[int, int]:
    """Give row -> size of the texts that may be over the limit."""
    characters = {row: len(text) for row, text in enumerate(split)}
    if limit.unit == "characters":
        return characters
    suspects = [row for row, size in characters.items() if size * _CHARACTERS_A_TOKEN + _SPECIAL_TOKENS > limit.most]
    if not suspects:
        return {}
    from training.encoder import TOKENIZER, resolve

    try:
        tokenizer = open_tokenizer(resolve(str(getattr(config.model, "encoder", ""))).directory / TOKENIZER)
    except ConfigError:
        return {}
    longest = sorted(suspects, key=lambda row: -characters[row])[:_MAX_TOKENIZED]
    # A text of a megabyte is too long by its beginning alone.
    beginnings = [split[row][: 40 * limit.most] for row in longest]
    return {row: len(encoding) for row, encoding in zip(longest, tokenizer.encode_batch_fast(beginnings), strict=True)}

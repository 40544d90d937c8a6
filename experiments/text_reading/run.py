"""What the event loop does for a text beside the model: tokens of words that came before, and answers by batch.

python -m experiments.text_reading.run BUNDLE TEXTS [--quick]    writes results/FAMILY.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from experiments import command
from experiments.report import Row, print_rows, save
from experiments.turns import in_turns, medians, ratios, row, series
from models.batch import collate, split
from models.intent import IntentModel
from models.manifest import PairText
from models.model import TOKENIZER, open_model
from models.ranking import RankRequest
from models.session import OnnxSession
from models.tagging import TaggingModel
from models.text import open_tokenizer, split_words
from registry.bundle import Bundle, open_bundle

HERE = Path(__file__).parent
BATCH_SIZES = (1, 8, 32)
_QUERY, _LIST = "led christmas lights", 100
LIBRARY, TABLE = "tokens, by the tokenizer", "tokens, by its table of words"
NEW = "{}, every word new"

_FIT = 16
"""Words that a model of 128 tokens reads, whatever they are."""
KEY = "us_a_text"


def main() -> None:
    """Time a text's way into a model and out of it."""
    parser = command.options(__doc__)
    parser.add_argument("bundle", type=Path, help="an intent or tagging model that reads sub-words, or a cross-encoder")
    parser.add_argument("texts", type=Path, help="JSON lines with `text`, `tokens` or `title`")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    texts = command.some_texts(options.texts)
    seconds, repetitions = (0.2, 2) if options.quick else (1.0, 5)
    found = in_turns(
        {
            name: lambda read=read: _us_a_text(read, len(texts), seconds)
            for name, read in contestants(bundle, texts).items()
        },
        repetitions,
    )
    rows = rows_of(found, options.texts.parent.name, bundle.manifest.family)
    print_rows(rows)
    if not options.quick:
        save(
            HERE / "results" / f"{bundle.manifest.family}.json",
            rows,
            "python -m experiments.text_reading.run BUNDLE TEXTS",
            medians=medians(found, (KEY,)),
            words=round(float(np.mean([len(text.split()) for text in texts])), 1),
            answers=len(bundle.manifest.tags or bundle.manifest.labels or ()),
        )


def contestants(bundle: Bundle, texts: Sequence[str]) -> dict[str, Callable[[], None]]:
    """Every way to read all texts once."""
    model = open_model(bundle.path, bundle.manifest)
    tokenizer = open_tokenizer(bundle.path / TOKENIZER)
    if bundle.manifest.pair_text is not None:
        return pairs(model, tokenizer, bundle.manifest.pair_text, texts)
    if not isinstance(model, IntentModel | TaggingModel):
        raise TypeError("the study reads texts, or pairs of them")
    encoded = [model.encode(text) for text in texts]
    session, signature = OnnxSession(bundle.model_file()), bundle.manifest.signature
    outputs = [split(session.run(collate([one], signature)), [one], signature)[0] for one in encoded]

    endings = cycle(map("".join, product(ascii_lowercase, repeat=4)))

    def with_new_words() -> list[str]:
        """The texts as far as they fit, with four letters behind every word that no table still has."""
        return [" ".join([word + next(endings) for word in text.split()[:_FIT]]) for text in texts]

    def tokenize(texts: Sequence[str]) -> None:
        """What a text needs of the library: its ids, and for tags where they stand."""
        for text in texts:
            encoding = tokenizer.encode(text)
            np.array(encoding.ids, dtype=np.int64)
            if isinstance(model, TaggingModel):
                split_words(text)
                _ = encoding.offsets

    def encode(texts: Sequence[str]) -> None:
        for text in texts:
            model.encode(text)

    def decode(size: int) -> None:
        for first in range(0, len(texts), size):
            part = slice(first, first + size)
            model.decode_batch(texts[part], encoded[part], outputs[part])

    return {
        LIBRARY: lambda: tokenize(texts),
        TABLE: lambda: encode(texts),
        NEW.format(LIBRARY): lambda: tokenize(with_new_words()),
        NEW.format(TABLE): lambda: encode(with_new_words()),
        **{f"answers, {size} at once": lambda size=size: decode(size) for size in BATCH_SIZES},
    }


def pairs(model: Any, tokenizer: Tokenizer, settings: PairText, texts: Sequence[str]) -> dict[str, Callable[[], None]]:
    """Ways to read a query with every text as a title, by lists."""
    if not settings.is_apart:
        tokenizer.enable_truncation(settings.max_tokens, strategy="only_second")
    lists = [tuple(texts[first : first + _LIST]) for first in range(0, len(texts), _LIST)]
    asked = [RankRequest(tuple(map(str, range(len(titles)))), _QUERY, titles) for titles in lists]

    def tokenize() -> None:
        for titles in lists:
            if settings.is_apart:
                first = tokenizer.encode(_QUERY).ids
                _ = [first + found.ids for found in tokenizer.encode_batch(titles)]
            else:
                _ = [found.ids for found in tokenizer.encode_batch([(_QUERY, title) for title in titles])]

    def encode() -> None:
        for request in asked:
            model.encode(request)

    return {LIBRARY: tokenize, TABLE: encode}


def rows_of(found: dict[str, list[dict[str, Any]]], data: str, family: str) -> list[Row]:
    """Rows of what is shipped, against what it took the place of."""
    rows = []
    for kind, what in (("{}", "that came before"), (NEW, "that are all new")):
        if kind.format(TABLE) not in found:
            continue
        metric = f"time of tokens from the table, of words {what}, times the tokenizer's"
        values = ratios(series(found[kind.format(TABLE)], KEY), series(found[kind.format(LIBRARY)], KEY))
        rows.append(row(f"{data}, one core", f"{family} model", metric, values))
    if family == "ranking":
        return rows
    alone = series(found["answers, 1 at once"], KEY)
    for size in BATCH_SIZES[1:]:
        metric = f"time to read answers {size} at once, times that of one at a time"
        values = ratios(series(found[f"answers, {size} at once"], KEY), alone)
        rows.append(row(f"{data}, one core", f"{family} model", metric, values))
    return rows


def _us_a_text(read: Callable[[], None], n_texts: int, seconds: float) -> dict[str, float]:
    """By the processor's time, which other programs do not lengthen; the library takes several threads for a list."""
    read()
    n_rounds, begin_s = 0, time.process_time()
    while time.process_time() - begin_s < seconds:
        read()
        n_rounds += 1
    return {KEY: 1e6 * (time.process_time() - begin_s) / (n_rounds * n_texts)}


if __name__ == "__main__":
    main()

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from models.batch import Encoded
from models.errors import InputError
from models.tagging import spans
from training.data.splits import TaggingRows
from training.swap import swapped, with_swapped

TOKENS = (("fly", "to", "san", "jose", "on", "monday"), ("boston", "please"), ("no", "names"), ("to", "new", "york"))
TAGS = (("O", "O", "B-city", "I-city", "O", "B-day"), ("B-city", "O"), ("O", "O"), ("O", "I-city", "I-city"))
ROWS = TaggingRows(TOKENS, TAGS, file="train.jsonl")
CITIES = {("san", "jose"), ("boston",), ("new", "york")}


def outside(tokens, tags):
    return [token for token, tag in zip(tokens, tags, strict=True) if tag == "O"]


def test_swapped_rows_keep_their_pattern_and_their_types_and_take_values_of_the_type():
    made = swapped(ROWS, 100, seed=1)
    seen = set()
    for place, (tokens, tags) in enumerate(zip(made.tokens, made.tags, strict=True)):
        of_tokens, of_tags = TOKENS[place % 4], TAGS[place % 4]
        assert outside(tokens, tags) == outside(of_tokens, of_tags)
        assert [span.type for span in spans(tags)] == [span.type for span in spans(of_tags)]
        values = {span.type: tokens[span.start : span.end] for span in spans(tags)}
        assert values.get("city", ("boston",)) in CITIES
        assert values.get("day", ("monday",)) == ("monday",)
        seen.add((place % 4, values.get("city")))
    assert {(0, city) for city in CITIES} | {(1, city) for city in CITIES} <= seen


def test_joint_rows_keep_their_labels_and_take_values_of_rows_of_their_own_label():
    labels = ("travel", "travel", "chat", "weather")
    made = swapped(replace(ROWS, labels=labels), 100, seed=1)
    assert made.labels == labels * 100
    cities = defaultdict(set)
    for tokens, tags, label in zip(made.tokens, made.tags, made.labels, strict=True):
        cities[label] |= {tokens[span.start : span.end] for span in spans(tags) if span.type == "city"}
    assert cities == {"travel": {("san", "jose"), ("boston",)}, "chat": set(), "weather": {("new", "york")}}


def test_about_half_of_the_spans_are_swapped_for_any_value_alike():
    rows = TaggingRows((("a",), ("b",), ("b",), ("b",)), (("B-x",),) * 4)
    made = swapped(rows, 1000, seed=1)
    # Of 4,000 spans half are kept; the others become a or b alike, however often each of them was seen.
    share = sum(tokens == ("a",) for tokens in made.tokens) / len(made)
    assert share == pytest.approx(0.5 * 0.25 + 0.5 * 0.5, abs=0.03)


def test_rows_are_repeatable_by_the_seed():
    assert swapped(ROWS, 5, seed=1) == swapped(ROWS, 5, seed=1)
    assert swapped(ROWS, 5, seed=1) != swapped(ROWS, 5, seed=2)


class ShortReader:
    """Reads up to six words."""

    def encode(self, text):
        words = text.split()
        if len(words) > 6:
            raise InputError("too long")
        return Encoded({"input_ids": np.arange(len(words))})


class Listener:
    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


def test_a_row_that_became_too_long_is_left_out_and_said():
    tokens, tags = (("a", "b", "c", "d", "e", "f"), ("one", "two")), (("B-x", *["O"] * 5), ("B-x", "I-x"))
    rows, listener = TaggingRows(tokens, tags), Listener()
    encoded = [ShortReader().encode(text) for text in rows.requests()]
    learned, examples = with_swapped(rows, encoded, ShortReader(), 20, 1, listener)
    assert learned.tokens[:2] == tokens
    assert [len(words) for words in learned.tokens] == [example.arrays["input_ids"].size for example in examples]
    n_left_out = 2 + 40 - len(learned)
    assert 0 < n_left_out < 20
    assert max(len(words) for words in learned.tokens) == 6
    assert listener.said == [f"note: {n_left_out} rows with swapped values are longer than the model reads; left out"]

"""A bound in bytes that holds against what Python's allocator says."""

import tracemalloc

import msgspec
import numpy as np
import pytest

from models.lexical import read
from models.text_cache import KnownText, TextCache

MAX_BYTES = 2_000_000


def known(text):
    return KnownText(read(text), np.full(384, len(text), dtype=np.float32))


def title(number):
    return f"item{number} running shoes for men size {number % 50} colour{number}"


def test_what_is_kept_stays_below_its_bound_and_uses_most_of_it():
    tracemalloc.start()
    try:
        texts = TextCache(MAX_BYTES)
        for number in range(3_000):
            text = title(number)
            texts.put("encoder", text, known(text))
        del text
        said, n_known = texts.n_bytes, len(texts)
        full, _ = tracemalloc.get_traced_memory()
        del texts
        taken = full - tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.5 * MAX_BYTES < taken <= MAX_BYTES
    assert 0.99 * MAX_BYTES < said <= MAX_BYTES
    assert 0 < n_known < 3_000


def test_the_text_not_asked_for_the_longest_time_goes_first():
    one = TextCache(None)
    one.put("e", "a", known("a"))
    texts = TextCache(2 * one.n_bytes)
    for text in "ab":
        texts.put("e", text, known(text))
    assert texts.get("e", "a") is not None
    texts.put("e", "c", known("c"))
    assert [texts.get("e", text) is not None for text in "abc"] == [True, False, True]
    assert texts.n_bytes == 2 * one.n_bytes
    assert (texts.n_hits, texts.n_misses) == (3, 1)


def test_what_is_forgotten_gives_back_what_it_took_though_its_text_has_grown():
    texts = TextCache(None)
    texts.put("e", "Größe 42", known("Größe 42"))
    bounded = TextCache(texts.n_bytes)
    text = "".join(["Größe", " ", "42"])
    bounded.put("e", text, known(text))
    msgspec.json.encode(text)  # which leaves its UTF-8 with it
    bounded.put("e", "a", known("a"))
    one = TextCache(None)
    one.put("e", "a", known("a"))
    assert (len(bounded), bounded.n_bytes) == (1, one.n_bytes)


def test_an_entry_put_twice_counts_once():
    texts = TextCache(None)
    texts.put("e", "a", known("a"))
    n_bytes = texts.n_bytes
    texts.put("e", "a", known("a"))
    assert (len(texts), texts.n_bytes) == (1, n_bytes)


@pytest.mark.parametrize("max_bytes", [0, 100])
def test_what_does_not_fit_is_not_kept(max_bytes):
    texts = TextCache(max_bytes)
    texts.put("e", "a", known("a"))
    assert (len(texts), texts.n_bytes, texts.get("e", "a")) == (0, 0, None)

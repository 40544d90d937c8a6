"""What is late, by hand, and that hedges stay within their share whatever happens."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.runtime.hedging import Hedging, size_of
from tests.bundles import tiny_bundle

SIZE = ("digest", 3)


def test_late_is_the_95th_of_the_last_two_hundred_waits():
    hedging = Hedging(0.05)
    for milliseconds in range(1, 101):
        hedging.waited(SIZE, milliseconds / 1e3)
    assert hedging.late_s(SIZE) == pytest.approx(0.095)
    for milliseconds in range(1_001, 1_201):
        hedging.waited(SIZE, milliseconds / 1e3)
    assert hedging.late_s(SIZE) == pytest.approx(1.190)


@given(st.lists(st.floats(0, 10), min_size=20, max_size=600))
def test_late_is_the_percentile_that_numpy_finds(waits_s):
    hedging = Hedging(0.05)
    for wait_s in waits_s:
        hedging.waited(SIZE, wait_s)
    assert hedging.late_s(SIZE) == np.percentile(waits_s[-200:], 95, method="inverted_cdf")


def test_nothing_is_late_before_twenty_answers_and_sizes_are_told_apart():
    hedging = Hedging(0.05)
    for _ in range(19):
        hedging.waited(SIZE, 1.0)
    assert hedging.late_s(SIZE) == math.inf
    hedging.waited(SIZE, 1.0)
    assert hedging.late_s(SIZE) == 1.0
    assert hedging.late_s(("digest", 4)) == math.inf


def test_batches_of_about_as_many_cells_are_of_one_size(tmp_path):
    bundle = tiny_bundle(tmp_path, "ranking")

    def size(n_rows):
        return size_of(bundle, {"features": np.zeros((n_rows, 2), np.float32)})

    assert size(32) == size(63) != size(64)
    assert size(32)[0] == bundle.digest


@given(st.floats(0, 1), st.lists(st.booleans(), max_size=400))
def test_hedges_never_pass_their_share_of_what_was_asked(share, wants):
    hedging, n_taken = Hedging(share), 0
    for n_asked, is_wanted in enumerate(wants, start=1):
        hedging.asked()
        n_taken += is_wanted and hedging.take()
        assert n_taken <= share * n_asked + 1e-9


def test_an_unspent_budget_allows_ten_at_once():
    hedging = Hedging(0.5)
    for _ in range(1_000):
        hedging.asked()
    assert [hedging.take() for _ in range(12)] == [True] * 10 + [False] * 2

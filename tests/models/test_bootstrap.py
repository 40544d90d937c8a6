import math
import time

import numpy as np
import pytest
from scipy import stats

from models import metrics
from models.bootstrap import interval, interval_of, intervals, paired_difference
from models.metrics import Ratio


def share(values):
    return Ratio(np.asarray(values, np.float64), np.ones(len(values)))


def test_an_interval_equals_scipys_percentile_bootstrap():
    random = np.random.default_rng(1)
    numerator, denominator = random.random(300), random.random(300) + 0.5
    low, high = interval(Ratio(numerator, denominator), n_resamples=4000)
    theirs = stats.bootstrap(
        (numerator, denominator),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=random,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=width / 20)
    assert high == pytest.approx(theirs.high, abs=width / 20)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(2)
    truth = 0.8
    bounds = [interval(share(random.random(200) < truth), n_resamples=300, seed=seed) for seed in range(300)]
    held = np.mean([low <= truth <= high for low, high in bounds])
    assert 0.90 < held < 0.98


def test_a_paired_interval_is_narrower_than_two_single_ones_where_answers_agree():
    random = np.random.default_rng(3)
    a = random.random(500) < 0.7
    b = a.copy()
    b[:10] = ~b[:10]
    difference, low, high = paired_difference(share(a), share(b))
    assert difference == pytest.approx(a.mean() - b.mean())
    assert low <= difference <= high
    assert high - low < (interval(share(a))[1] - interval(share(a))[0]) / 3


def test_a_model_does_not_differ_from_itself():
    same = share(np.arange(50) % 2)
    assert paired_difference(same, same) == (0, 0, 0)


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="same examples, got 2 and 3"):
        paired_difference(share([0, 1]), share([0, 1, 1]))


def test_the_seed_decides_the_draws():
    ratio = share(np.random.default_rng(4).random(100))
    assert interval(ratio, seed=5) == interval(ratio, seed=5) != interval(ratio, seed=6)


def test_several_ratios_at_once_have_the_bounds_that_each_has_alone():
    random = np.random.default_rng(9)
    ratios = {name: share(random.random(80)) for name in "abc"}
    for name, bounds in intervals(ratios, seed=3).items():
        assert bounds == pytest.approx(interval(ratios[name], seed=3))
    assert intervals({}) == {}


def test_large_sets_are_drawn_in_blocks_without_losing_resamples():
    n_calls = 0

    def count(indices):
        nonlocal n_calls
        n_calls += 1
        return float(len(indices))

    assert interval_of(count, 30_000, n_resamples=150) == (30_000, 30_000)
    assert n_calls == 150


def test_draws_without_a_denominator_are_left_out():
    # One of five examples counts: a third of all draws miss it, and the others all say 1.
    ratio = Ratio(np.array([1.0, 0, 0, 0, 0]), np.array([1.0, 0, 0, 0, 0]))
    assert interval(ratio) == (1, 1)


def test_an_undefined_ratio_has_undefined_bounds():
    assert all(math.isnan(bound) for bound in interval(Ratio(np.zeros(3), np.zeros(3))))
    assert all(math.isnan(bound) for bound in interval(Ratio(np.zeros(0), np.zeros(0))))
    assert all(math.isnan(bound) for bound in paired_difference(share([1, 0]), Ratio(np.zeros(2), np.zeros(2))))


def test_any_statistic_gets_an_interval():
    random = np.random.default_rng(7)
    gold, predicted = random.integers(0, 5, 400), random.integers(0, 5, 400)
    low, high = interval_of(lambda chosen: metrics.macro_f1(gold[chosen], predicted[chosen]), 400)
    assert low < metrics.macro_f1(gold, predicted) < high


def test_a_test_set_of_5500_rows_takes_well_below_a_second():
    ratio = share(np.random.default_rng(8).random(5500) < 0.9)
    begin = time.process_time()
    interval(ratio)
    assert time.process_time() - begin < 1.0

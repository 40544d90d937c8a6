from types import SimpleNamespace

import numpy as np
import pytest

from registry.evaluation import Latency
from serving.gateway.cost import Cost


def test_it_learns_what_a_batch_a_token_and_padding_cost():
    cost = Cost()
    dice = np.random.default_rng(0)
    for _ in range(3000):
        n_cells, n_padding = int(dice.integers(5, 200)), int(dice.integers(0, 100))
        cost.learn(n_cells, n_padding, 0.8e-3 + 0.12e-3 * n_cells + 0.02e-3 * n_padding)
    assert cost.seconds(100, 0) == pytest.approx(12.8e-3, rel=0.02)
    assert cost.seconds(100, 100) == pytest.approx(14.8e-3, rel=0.02)
    assert cost.seconds(10) == pytest.approx(2.0e-3, rel=0.05)


def test_the_first_batch_is_believed():
    cost = Cost()
    cost.learn(90, 10, 0.02)
    assert cost.seconds(90, 10) == pytest.approx(0.02)


def test_a_slow_first_list_of_one_candidate_says_little_of_long_ones():
    cost = Cost()
    cost.learn(1, 0, 0.02)
    assert cost.seconds(40) < 0.021


def test_a_stall_of_the_machine_is_not_taken_for_the_model():
    cost = Cost(0.001, 0.0001)
    before = cost.seconds(100)
    cost.learn(100, 0, 5.0)
    assert before < cost.seconds(100) < 1.3 * before


def test_lone_requests_of_one_length_for_hours_keep_their_cost():
    cost = Cost(0.001, 0.0001)
    for _ in range(100_000):
        cost.learn(10, 0, 0.002)
    assert cost.seconds(10) == pytest.approx(0.002)
    assert cost.seconds(80) == pytest.approx(0.009, rel=0.2)


def test_no_part_of_a_cost_is_ever_negative():
    cost = Cost(0.01, 0.001, 0.001)
    for n_cells in (1, 300) * 50:
        cost.learn(n_cells, 300, 0.001)
    assert min(cost.fixed_s, cost.cell_s, cost.padding_s) >= 0


@pytest.mark.parametrize(
    ("layout", "measured_ms", "n_cells", "expected_s"),
    [
        ("rows", {"batch_1": 2.0, "batch_8": 9.0, "batch_32": 33.0}, 8 * 10, 9e-3),
        ("rows", {"batch_1": 2.0, "batch_32": 33.0}, 10, 2e-3),
        ("concat", {"list_10": 0.2, "list_1000": 10.1}, 500, 5.1e-3),
        ("rows", {"batch_8": 9.0}, 80, 0.0),
    ],
)
def test_it_begins_with_what_training_measured(monkeypatch, layout, measured_ms, n_cells, expected_s):
    """Golden rows of ten tokens: what a text costs is a tenth of it for each."""
    latency = {
        call: Latency(n_calls=9, total_p50_ms=99, total_p95_ms=99, model_p50_ms=ms, model_p95_ms=99)
        for call, ms in measured_ms.items()
    }
    report = SimpleNamespace(served=SimpleNamespace(latency=latency))
    monkeypatch.setattr("serving.gateway.cost.Report.load", lambda _: report)
    rows = [SimpleNamespace(encoded=SimpleNamespace(length=length)) for length in (5, 15)]
    monkeypatch.setattr("serving.gateway.cost.golden.read", lambda _: rows)
    bundle = SimpleNamespace(path=None, manifest=SimpleNamespace(signature=SimpleNamespace(layout=layout)))
    assert Cost.measured(bundle).seconds(n_cells) == pytest.approx(expected_s)

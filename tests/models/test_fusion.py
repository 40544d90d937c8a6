import numpy as np
import pytest

from models.fusion import fit_weights, linear, reciprocal_rank


def test_reciprocal_ranks_add_up() -> None:
    # Ranks 1, 2, 3 and 3, 1, 2: 1/61 + 1/63, 1/62 + 1/61, 1/63 + 1/62.
    fused = reciprocal_rank([np.array([9.0, 5.0, 1.0]), np.array([-3.0, 2.0, 1.0])])
    np.testing.assert_allclose(fused, [1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62])


def test_equal_scores_share_their_ranks() -> None:
    np.testing.assert_allclose(reciprocal_rank([np.array([1.0, 1.0, 0.0])], k=1), [1 / 2.5, 1 / 2.5, 1 / 4])


def test_linear_fusion_knows_no_scale() -> None:
    one, two = np.array([1.0, 2.0, 6.0]), np.array([3.0, 1.0, 2.0])
    # (1, 2, 6): mean 3, deviation sqrt(14 / 3). (3, 1, 2): mean 2, deviation sqrt(2 / 3).
    expected = 0.25 * np.array([-2, -1, 3]) / np.sqrt(14 / 3) + 0.75 * np.array([1, -1, 0]) / np.sqrt(2 / 3)
    np.testing.assert_allclose(linear([one, two], (0.25, 0.75)), expected)
    np.testing.assert_allclose(linear([one * 100 - 7, two], (0.25, 0.75)), expected)


def test_a_phase_that_scores_all_alike_adds_nothing() -> None:
    np.testing.assert_allclose(linear([np.ones(2), np.array([0.0, 2.0])], (0.9, 0.1)), [-0.1, 0.1])


def test_weights_go_to_the_phase_that_orders_rightly() -> None:
    generator = np.random.default_rng(0)
    labels = [generator.integers(0, 3, 12).astype(np.float32) for _ in range(20)]
    noise = [generator.normal(size=12).astype(np.float32) for _ in labels]
    right = [one + generator.normal(scale=0.3, size=12).astype(np.float32) for one in labels]
    weights = fit_weights([noise, right], labels)
    assert weights[1] > 0.8
    assert sum(weights) == pytest.approx(1)


def test_of_equally_good_weights_the_most_equal_are_kept() -> None:
    scores = [np.array([3.0, 2.0, 1.0], np.float32)]
    assert fit_weights([scores, scores], [np.array([2.0, 1.0, 0.0], np.float32)]) == (0.5, 0.5)

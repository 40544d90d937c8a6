"""Scores of being in scope by their formulae, for one text and for many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from models.manifest import Scope
from models.scope import inside, scope_log_odds, scope_scores

LABELS = ("buy", "oos", "return")


def test_scores_are_those_of_their_formulae() -> None:
    logits_NC = np.array([[1.0, -2.0, 3.0], [0.0, 5.0, 0.5]], dtype=np.float32)
    outputs = {"intent_logits": logits_NC, "class_distance": np.array([0.25, 1.5], dtype=np.float32)}
    found = scope_scores(("energy", "distance", "oos_class"), outputs, inside(LABELS))
    energy_N = logsumexp(logits_NC[:, [0, 2]].astype(np.float64), axis=1)
    np.testing.assert_allclose(found[:, 0], energy_N)
    np.testing.assert_allclose(found[:, 1], [-0.25, -1.5])
    np.testing.assert_allclose(found[:, 2], energy_N - logits_NC[:, 1])


def test_the_oos_class_score_is_the_log_odds_of_not_being_oos() -> None:
    logits_C = np.array([1.0, -2.0, 3.0])
    odds = np.exp(logits_C)
    not_oos = 1 - odds[1] / odds.sum()
    (score,) = scope_scores(("oos_class",), {"intent_logits": logits_C}, inside(LABELS))
    assert score == pytest.approx(np.log(not_oos / (1 - not_oos)))


def test_one_text_has_the_log_odds_that_it_has_among_many() -> None:
    scope = Scope(weights={"energy": 2.0, "oos_class": -0.5}, bias=1.0, threshold=0.0, is_calibrated=True)
    labels = inside((*map(str, range(150)), "oos"))
    logits_NC = np.random.default_rng(0).normal(size=(32, 151))
    together_N = scope_log_odds(scope, {"intent_logits": logits_NC}, labels)
    alone = [float(scope_log_odds(scope, {"intent_logits": logits_C}, labels)) for logits_C in logits_NC]
    assert together_N.tolist() == alone


def test_large_logits_do_not_overflow() -> None:
    assert scope_scores(("energy",), {"intent_logits": np.array([1e30, 0.0, -1e30])}, inside(LABELS)) == [1e30]

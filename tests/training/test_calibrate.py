"""Temperature and the decision on scope, fitted on rows whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from models.errors import ConfigError, DataError
from models.manifest import Contents, Signature
from models.scope import inside, scope_log_odds
from tests.silent import Silent
from training.calibrate import calibrated, check_scope, choose_threshold, row_weights
from training.config import ScopeConfig
from training.data.splits import IntentRows, Splits

LABELS = ("buy", "oos", "return")
INSIDE = np.array([True, True, True, True, False, False, True, False, True, True])
RIGHT = np.array([True, True, True, True, False, False, False, False, True, True])
LOG_ODDS = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 1.0, 2.0, 4.0, 3.0, 2.0])
"""By falling log-odds: 9 8 7 6 in scope, 5 oos, 4 oos, 3 in scope, 2 in scope (wrong) and 2 in scope, 1 oos."""


def contents(labels: tuple[str, ...] = LABELS) -> Contents:
    return Contents(family="intent", signature=Signature(inputs=(), outputs=(), layout="rows"), labels=labels)


def rows(labels: list[str]) -> IntentRows:
    return IntentRows(tuple(map(str, range(len(labels)))), tuple(labels), "valid.jsonl")


def chosen(aim: dict[str, float] | None, oos_share: float | None = None) -> float:
    config = ScopeConfig.model_validate({"aim": aim, "oos_share": oos_share})
    return choose_threshold(config, LOG_ODDS, INSIDE, RIGHT, row_weights(INSIDE, oos_share))


@pytest.mark.parametrize(
    ("aim", "threshold"),
    [
        ({"oos_recall": 1.0}, 5.5),
        ({"oos_recall": 0.5}, 4.5),
        ({"oos_recall": 0.0}, 0.5),
        # Three of seven may be refused: those below 4, and then `oos` rows up to the next in scope.
        ({"false_alarms_per_1000": 430}, 5.5),
        # Two of the three stand at the same log-odds and cannot be told apart.
        ({"false_alarms_per_1000": 290}, 2.5),
        ({"false_alarms_per_1000": 150}, 1.5),
        ({"false_alarms_per_1000": 0}, 1.5),
    ],
)
def test_the_threshold_serves_its_aim_and_lies_between_two_rows(aim: dict[str, float], threshold: float) -> None:
    assert chosen(aim) == threshold


def test_the_fewest_errors_depend_on_the_share_of_oos_in_use() -> None:
    # Right answers by cut: nothing refused 6; below 1.5: 7; below 5.5: 4 in scope and 3 oos, 7 as well; the first wins.
    assert chosen(None) == 1.5
    # An oos row now weighs 0.6 / 0.3 = 2, one in scope 0.4 / 0.7: three of the first outweigh two right ones.
    assert chosen(None, 0.6) == 5.5


def test_rows_weigh_as_the_expected_share_of_oos_says() -> None:
    weights = row_weights(INSIDE, 0.6)
    assert weights.sum() == pytest.approx(10)
    assert weights[~INSIDE].sum() == pytest.approx(6)


def test_the_temperature_that_made_the_labels_is_found() -> None:
    random = np.random.default_rng(0)
    logits_NC = random.normal(size=(20_000, 3)) * 3
    # Labels are drawn at temperature 2.5: confidences are honest exactly there.
    chances_NC = softmax(logits_NC / 2.5, axis=1)
    gold = (chances_NC.cumsum(axis=1) > random.random((20_000, 1))).argmax(axis=1)
    outputs = [{"intent_logits": logits_C} for logits_C in logits_NC]
    found = calibrated(contents(), None, rows([LABELS[i] for i in gold]), outputs, Silent())
    assert found.calibration.temperature == pytest.approx(2.5, rel=0.03)
    assert found.scope is None


def test_the_temperature_stays_sane_where_every_row_is_right() -> None:
    outputs = [{"intent_logits": np.array([4.0, 0.0, 0.0])}] * 8
    found = calibrated(contents(), None, rows(["buy"] * 8), outputs, Silent())
    assert 0.5 < found.calibration.temperature < 5


def test_log_odds_of_several_scores_are_honest() -> None:
    random = np.random.default_rng(1)
    n_rows = 20_000
    logits_NC = random.normal(size=(n_rows, 3)) * 2
    outputs = [{"intent_logits": logits_C} for logits_C in logits_NC]
    energy_N = np.log(np.exp(logits_NC[:, [0, 2]]).sum(axis=1))
    truth_N = 1.5 * energy_N + 0.5 * (energy_N - logits_NC[:, 1]) - 1.0
    is_inside_N = random.random(n_rows) < 1 / (1 + np.exp(-truth_N))
    gold = np.where(is_inside_N, "buy", "oos").tolist()
    config = ScopeConfig(scores=("energy", "oos_class"))
    found = calibrated(contents(), config, rows(gold), outputs, Silent()).scope
    assert found is not None
    assert found.is_calibrated
    assert found.weights == pytest.approx({"energy": 1.5, "oos_class": 0.5}, abs=0.12)
    assert found.bias == pytest.approx(-1.0, abs=0.12)
    # The prior moves the bias by the change of the log-odds, and nothing else.
    shifted = calibrated(contents(), ScopeConfig(oos_share=0.5), rows(gold), outputs, Silent()).scope
    assert shifted is not None
    odds_N = scope_log_odds(shifted, {"intent_logits": logits_NC}, inside(LABELS))
    weights_N = row_weights(is_inside_N, 0.5)
    assert (weights_N / (1 + np.exp(-odds_N))).sum() / n_rows == pytest.approx(0.5, abs=0.01)


def test_without_oos_rows_the_fewest_errors_are_made_by_refusing_none_of_them() -> None:
    outputs = [{"intent_logits": np.array([float(i), 0.0])} for i in range(20)]
    found = calibrated(contents(("buy", "return")), ScopeConfig(), rows(["buy"] * 20), outputs, Silent()).scope
    assert found is not None
    assert found.threshold < min(float(scope_log_odds(found, one, inside(("buy", "return")))) for one in outputs)


def test_false_alarms_need_no_oos_rows_and_the_person_is_told() -> None:
    labels = ("buy", "return")
    outputs = [{"intent_logits": np.array([float(i), 0.0])} for i in range(100)]
    config = ScopeConfig.model_validate({"aim": {"false_alarms_per_1000": 50}})
    recorder = Silent()
    found = calibrated(contents(labels), config, rows(["buy"] * 100), outputs, recorder).scope
    assert found is not None
    assert (found.is_calibrated, found.weights, found.bias) == (False, {"energy": 1.0}, 0.0)
    below = [float(scope_log_odds(found, one, inside(labels))) < found.threshold for one in outputs]
    assert below == [True] * 5 + [False] * 95
    assert recorder.said[-1].endswith("has no oos rows of valid.jsonl, with 50.0 false alarms per 1000 in-scope rows")


@pytest.mark.parametrize(
    ("config", "train", "valid", "rule"),
    [
        (
            {"aim": {"oos_recall": 0.8}},
            ["buy", "oos"],
            ["buy"],
            "the aim oos_recall needs rows with the label oos in v",
        ),
        ({"oos_share": 0.1}, ["buy", "oos"], ["buy"], "oos_share needs rows with the label oos"),
        ({"scores": ["oos_class"]}, ["buy", "return"], ["buy", "oos"], "oos_class needs rows with the label oos in t"),
        (
            {"scores": ["energy", "distance"], "aim": {"false_alarms_per_1000": 5}},
            ["buy", "return"],
            ["buy"],
            "more than one score needs rows",
        ),
    ],
)
def test_a_decision_that_the_rows_give_nothing_for_is_refused_before_training(
    config: dict[str, object], train: list[str], valid: list[str], rule: str
) -> None:
    splits = Splits(IntentRows(("x",) * len(train), tuple(train), "train.jsonl"), rows(valid), None)
    with pytest.raises(DataError, match=rule):
        check_scope(ScopeConfig.model_validate(config), splits)


def test_lists_of_labels_take_no_decision_on_scope() -> None:
    listed = IntentRows(("x",), ("buy",), "train.jsonl", label_sets=(("buy",),))
    with pytest.raises(ConfigError, match="scope must be left out for rows with a list of labels"):
        check_scope(ScopeConfig(), Splits(listed, listed, None))


@pytest.mark.parametrize("aim", [{}, {"oos_recall": 0.8, "false_alarms_per_1000": 5}])
def test_an_aim_is_one_of_two(aim: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must have either oos_recall or false_alarms_per_1000"):
        ScopeConfig.model_validate({"aim": aim})

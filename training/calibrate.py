"""What a fitted intent model's outputs on valid settle: its temperature, and its decision on scope.

Shapes: N rows, C labels, S scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from models.batch import Arrays, stacked
from models.errors import ConfigError, DataError
from models.manifest import OOS_LABEL, Calibration, Contents, Scope
from models.scope import inside, scope_log_odds, scope_scores
from training.config import ScopeConfig
from training.data.splits import IntentRows, Splits
from training.fit import Recorder

_TEMPERATURES = (0.05, 20.0)


def check_scope(config: ScopeConfig | None, splits: Splits[IntentRows]) -> None:
    """Refuse, before anything is trained, a decision on scope that the rows give nothing for: Config- or DataError."""
    if config is None:
        return
    if splits.train.label_sets is not None:
        raise ConfigError(
            "scope must be left out for rows with a list of labels: a text that no label applies to is out of scope",
            field="scope",
        )
    if "oos_class" in config.scores and OOS_LABEL not in splits.train.labels:
        raise DataError(
            f"the score oos_class needs rows with the label {OOS_LABEL} in {splits.train.file}, it has none; "
            "take energy",
            field="scope.scores",
        )
    if OOS_LABEL in splits.valid.labels:
        return
    asks = (
        (len(config.scores) > 1, "scope.scores", "more than one score"),
        (config.oos_share is not None, "scope.oos_share", "oos_share"),
        (config.aim is not None and config.aim.oos_recall is not None, "scope.aim", "the aim oos_recall"),
    )
    for is_asked, field, what in asks:
        if is_asked:
            raise DataError(
                f"{what} needs rows with the label {OOS_LABEL} in {splits.valid.file}, it has none; add some, or take "
                "one score and the aim false_alarms_per_1000, which needs none",
                field=field,
            )


def calibrated(
    contents: Contents, config: ScopeConfig | None, valid: IntentRows, outputs: Sequence[Arrays], recorder: Recorder
) -> Contents:
    """Give `contents` with the temperature, and the decision on scope where `config` asks for one.

    outputs [N]: of the fitted model to the valid rows. `check_scope` has let config and rows pass.
    """
    labels = contents.labels or ()
    logits_NC = np.stack([np.asarray(one["intent_logits"], dtype=np.float64) for one in outputs])
    if contents.gives_several_labels:
        temperature = _fit_temperature(lambda t: _several_loss(logits_NC / t, _sets(valid, labels)))
        return contents.model_copy(update={"calibration": Calibration(temperature=temperature)})
    is_inside_C = np.array([config is None or label != OOS_LABEL for label in labels])
    places = {label: place for place, label in enumerate(np.array(labels)[is_inside_C].tolist())}
    gold_N = np.array([places.get(label, -1) for label in valid.labels])
    kept_NC, kept_N = logits_NC[gold_N >= 0][:, is_inside_C], gold_N[gold_N >= 0]
    temperature = _fit_temperature(lambda t: _loss(kept_NC / t, kept_N))
    recorder.say(f"confidences: temperature {temperature:.3f}, fitted on {len(kept_N)} rows of {valid.file}")
    update: dict[str, object] = {"calibration": Calibration(temperature=temperature)}
    if config is not None:
        is_right_N = logits_NC[:, is_inside_C].argmax(axis=1) == gold_N
        update["scope"] = _fit_scope(config, stacked(outputs), labels, valid, is_right_N, recorder)
    return contents.model_copy(update=update)


def calibration_facts(contents: Contents) -> dict[str, float | int | str]:
    """What was settled, to be logged with the facts of the fit."""
    facts: dict[str, float | int | str] = {"temperature": contents.calibration.temperature}
    if contents.scope is not None:
        facts["scope_threshold"] = contents.scope.threshold
        facts |= {f"scope_weight_{name}": weight for name, weight in contents.scope.weights.items()}
    return facts


def _fit_scope(
    config: ScopeConfig,
    outputs: Arrays,
    labels: Sequence[str],
    valid: IntentRows,
    is_right_N: NDArray[np.bool_],
    recorder: Recorder,
) -> Scope:
    is_inside_N = np.array(valid.labels) != OOS_LABEL
    weights_N = row_weights(is_inside_N, config.oos_share)
    scores_NS = scope_scores(config.scores, outputs, inside(labels))
    has_oos = not is_inside_N.all()
    weights_S, bias = _fit_log_odds(scores_NS, is_inside_N, weights_N) if has_oos else (np.ones(1), 0.0)
    draft = Scope(
        weights=dict(zip(config.scores, weights_S.tolist(), strict=True)),
        bias=bias,
        threshold=0.0,
        is_calibrated=has_oos,
    )
    log_odds_N = scope_log_odds(draft, outputs, inside(labels))
    threshold = choose_threshold(config, log_odds_N, is_inside_N, is_right_N, weights_N)
    is_called_oos_N = log_odds_N < threshold
    alarms = 1000 * float(is_called_oos_N[is_inside_N].mean())
    recall = f"finds {is_called_oos_N[~is_inside_N].mean():.3f} of the oos rows" if has_oos else "has no oos rows"
    recorder.say(
        f"scope: {' and '.join(config.scores)} below {threshold:.3f} {recall} of {valid.file}, with {alarms:.1f} false "
        "alarms per 1000 in-scope rows"
    )
    return draft.model_copy(update={"threshold": threshold})


def row_weights(is_inside_N: NDArray[np.bool_], oos_share: float | None) -> NDArray[np.float64]:
    """Weights [N] of sum N under which `oos` rows have the share that is expected in use; None: all 1."""
    if oos_share is None or is_inside_N.all():
        return np.ones(len(is_inside_N))
    inside, outside = (1 - oos_share) / is_inside_N.mean(), oos_share / (~is_inside_N).mean()
    return np.where(is_inside_N, np.float64(inside), np.float64(outside))


def choose_threshold(
    config: ScopeConfig,
    log_odds_N: NDArray[np.float64],
    is_inside_N: NDArray[np.bool_],
    is_right_N: NDArray[np.bool_],
    weights_N: NDArray[np.float64],
) -> float:
    """The threshold that serves the aim on these rows; whatever is below it is called `oos`.

    is_right_N: whether the likeliest label other than `oos` is the right one. Thresholds lie in the middle between two
    rows, as far as may be from either, so that rounding in another variant of the model moves few decisions.
    """
    order_N = np.argsort(log_odds_N, kind="stable")
    sorted_N = log_odds_N[order_N]
    is_inside_N, is_right_N, weights_N = is_inside_N[order_N], is_right_N[order_N], weights_N[order_N]
    # cut i calls the rows before i oos; rows of equal log-odds cannot be cut apart
    cuts = np.flatnonzero(np.concatenate([[True], sorted_N[1:] > sorted_N[:-1], [True]]))
    n_oos_called = np.concatenate([[0], np.cumsum(~is_inside_N)])[cuts]
    n_alarms = np.concatenate([[0], np.cumsum(is_inside_N)])[cuts]
    aim = config.aim
    if aim is None:
        gains_N = np.where(is_inside_N, -1.0 * is_right_N, 1.0) * weights_N
        best = int(np.concatenate([[0.0], np.cumsum(gains_N)])[cuts].argmax())
    elif aim.oos_recall is not None:
        best = int(np.argmax(n_oos_called >= math.ceil(aim.oos_recall * (~is_inside_N).sum() - 1e-9)))
    else:
        allowed = (aim.false_alarms_per_1000 or 0.0) / 1000 * is_inside_N.sum()
        best = int(np.flatnonzero(n_alarms <= allowed + 1e-9)[-1])
    cut = cuts[best]
    below = sorted_N[cut - 1] if cut else sorted_N[0] - 1
    above = sorted_N[cut] if cut < len(sorted_N) else sorted_N[-1] + 1
    return float((below + above) / 2)


def _fit_log_odds(
    scores_NS: NDArray[np.float64], is_inside_N: NDArray[np.bool_], weights_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Logistic regression of being in scope, with Platt's targets (1999, section 2.2): weights [S] and bias.

    The targets (n + 1) / (n + 2) and 1 / (n + 2) keep the weights finite where the scores separate all rows.
    """
    n_inside, n_oos = int(is_inside_N.sum()), int((~is_inside_N).sum())
    target_N = np.where(is_inside_N, (n_inside + 1) / (n_inside + 2), 1 / (n_oos + 2))
    mean_S, spread_S = scores_NS.mean(axis=0), np.maximum(scores_NS.std(axis=0), 1e-12)
    scaled_NS = (scores_NS - mean_S) / spread_S

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_odds_N = scaled_NS @ parameters[:-1] + parameters[-1]
        value = weights_N @ (np.logaddexp(0, log_odds_N) - target_N * log_odds_N) / len(weights_N)
        slope_N = weights_N * (np.exp(-np.logaddexp(0, -log_odds_N)) - target_N) / len(weights_N)
        return float(value), np.append(slope_N @ scaled_NS, slope_N.sum())

    fitted = minimize(loss, np.append(np.ones(len(mean_S)), 0.0), jac=True, method="L-BFGS-B").x
    weights_S = fitted[:-1] / spread_S
    return weights_S, float(fitted[-1] - weights_S @ mean_S)


def _fit_temperature(loss: Callable[[float], float]) -> float:
    """The temperature of the smallest loss, searched on a logarithmic scale."""
    bounds = tuple(math.log(bound) for bound in _TEMPERATURES)
    found = minimize_scalar(lambda log_t: loss(math.exp(log_t)), bounds=bounds, method="bounded")
    return math.exp(float(found.x))


def _loss(scaled_NC: NDArray[np.float64], gold_N: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood (Guo et al. 2017, section 4.2), with a trace of every label in the target.

    That trace, 1 / (N + 2) as Platt has it, keeps the temperature above 0 where every row is right. 0 without rows.
    """
    if not len(gold_N):
        return 0.0
    shifted_NC = scaled_NC - scaled_NC.max(axis=1, keepdims=True)
    log_chance_NC = shifted_NC - np.log(np.exp(shifted_NC).sum(axis=1, keepdims=True))
    trace = 1 / (len(gold_N) + 2)
    right_N = log_chance_NC[np.arange(len(gold_N)), gold_N]
    return float(-((1 - trace) * right_N + trace * log_chance_NC.mean(axis=1)).mean())


def _several_loss(scaled_NC: NDArray[np.float64], is_gold_NC: NDArray[np.bool_]) -> float:
    """Mean binary cross-entropy over rows and labels, with the same trace of one half in the target."""
    trace = 1 / (len(is_gold_NC) + 2)
    target_NC = np.where(is_gold_NC, 1 - trace / 2, trace / 2)
    return float((np.logaddexp(0, scaled_NC) - target_NC * scaled_NC).mean())


def _sets(rows: IntentRows, labels: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each label [C] is one of the row's [N]."""
    return np.array([[label in row for label in labels] for row in map(set, rows.label_sets or ())], dtype=bool)

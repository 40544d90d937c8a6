"""The figures of a study, from trials made by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from models.config import validate
from training.tuning.config import TuneConfig
from training.tuning.pictures import pictures
from training.tuning.space import Space
from training.tuning.trials import Order

BASE = {"task": "ranking", "model": {"kind": "xgboost"}}
ENTRIES = {"training.l2": {"low": 0.1, "high": 10, "log": True}, "training.pair_method": ["topk", "mean"]}


def order(**settings: Any) -> Order:
    config = validate(TuneConfig, {"base": "b", "space": ENTRIES, **settings})
    return Order(config, Space.of(config, BASE, "ranking"), Path(), "x", 6)


def trials(order: Order, values: Sequence[Sequence[float] | TrialState], *, curve: bool) -> list[FrozenTrial]:
    made = []
    for number, value in enumerate(values):
        state = value if isinstance(value, TrialState) else TrialState.COMPLETE
        trial = optuna.trial.create_trial(
            state=state,
            values=None if isinstance(value, TrialState) else value,
            params={"training.l2": 0.1 * (number + 1), "training.pair_method": "mean" if number % 2 else "topk"},
            distributions=dict(order.space.distributions),
            intermediate_values={1: 0.1, 2: 0.2 + number / 10} if curve else {},
        )
        trial.number = number
        made.append(trial)
    return made


def drawn(figure: Any) -> Any:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def lines(figure: Any, label: str) -> list[list[float]]:
    [line] = [line for line in figure.axes[0].lines if line.get_label() == label]
    return [list(map(float, values)) for values in (line.get_xdata(), line.get_ydata())]


def test_the_history_shows_every_trial_and_the_best_so_far() -> None:
    here = order()
    made = trials(here, [[0.5], [0.4], TrialState.PRUNED, [0.7], TrialState.FAIL, [0.6]], curve=True)
    figures = pictures(made, here, made[3], made[0], [], {"training.l2": 0.9, "training.pair_method": 0.1})
    assert set(figures) == {"history", "keys", "curves", "importance"}
    assert lines(figures["history"], "best so far") == [[0, 1, 3, 5], [0.5, 0.5, 0.7, 0.7]]
    assert lines(figures["history"], "stopped early")[0] == [2]
    assert lines(figures["history"], "failed")[0] == [4]
    assert [axes.get_title() for axes in figures["keys"].axes] == list(ENTRIES)
    assert lines(figures["curves"], "best") == [[1, 2], [0.1, 0.5]]
    assert [text.get_text() for text in figures["importance"].axes[0].texts] == ["0.10", "0.90"]
    assert all(drawn(figure).std() > 0 for figure in figures.values())


def test_each_cost_has_a_front_with_its_budget() -> None:
    here = order(objectives=["quality", "size"], budget={"size": 2e6})
    made = trials(here, [[0.5, 1e6], [0.4, 5e6], [0.7, 30e6]], curve=False)
    figures = pictures(made, here, made[0], None, [made[2], made[0]], {})
    assert set(figures) == {"history", "keys", "front_size"}
    assert lines(figures["front_size"], "beaten by none in everything") == [[1, 30], [0.5, 0.7]]
    assert lines(figures["front_size"], "budget")[0] == [2, 2]
    drawn(figures["front_size"]).std()

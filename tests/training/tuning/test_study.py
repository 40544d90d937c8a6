"""Optuna's storage as a study uses it: nothing is lost, counted twice or forgotten, whoever is killed."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from models.config import validate
from models.errors import WorkspaceError
from training.tuning.config import TuneConfig
from training.tuning.space import Space
from training.tuning.study import BASE, Claim, Study

CONFIG = {"task": "ranking", "model": {"kind": "xgboost"}}
ENTRIES = {"training.l2": {"low": 0.5, "high": 50, "log": True}, "training.pair_method": ["topk", "mean"]}


def study(directory: Path, **settings: Any) -> Study:
    config = validate(TuneConfig, {"base": "b", "space": ENTRIES, "n_startup_trials": 3, **settings})
    return Study(directory / "s", config, Space.of(config, CONFIG, "ranking"))


CLAIMS: list[Claim] = []


@pytest.fixture(autouse=True)
def _locks() -> Iterator[None]:
    yield
    while CLAIMS:
        CLAIMS.pop().lock.close()


def claimed(study: Study, n_trials: int = 50) -> Claim:
    claim = study.claim(n_trials)
    assert claim is not None
    CLAIMS.append(claim)
    return claim


def quality(claim: Claim) -> float:
    params = claim.trial.params
    return -abs(params["training.l2"] - 7) + (params["training.pair_method"] == "mean")


def carry_out(study: Study, n_trials: int) -> list[dict[str, Any]]:
    while (claim := study.claim(n_trials)) is not None:
        study.complete(claim, [quality(claim)])
    return [trial.params for trial in study.complete_trials()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_that_goes_on_suggests_what_it_would_have_suggested(tmp_path: Path, sampler: str) -> None:
    settings = {"sampler": sampler, **({"n_startup_trials": 3} if sampler == "tpe" else {})}
    config = validate(TuneConfig, {"base": "b", "space": ENTRIES, **settings})
    at = [Study(tmp_path / name / "s", config, Space.of(config, CONFIG, "ranking")) for name in ("whole", "stopped")]
    expected = carry_out(at[0], 9)
    carry_out(at[1], 4)
    claimed(at[1]).lock.close()  # as the kernel does for a process that was killed
    again = Study(tmp_path / "stopped" / "s", config, Space.of(config, CONFIG, "ranking"))
    assert [trial.number for trial in again.recover()] == [4]
    assert carry_out(again, 9) == expected
    assert len({str(params) for params in expected}) == 9


def test_the_first_trial_is_the_base_configuration(tmp_path: Path) -> None:
    assert claimed(study(tmp_path)).trial.params == {"training.l2": 1.0, "training.pair_method": "topk"}


def test_a_trial_of_a_killed_process_is_begun_once_more_and_counted_once(tmp_path: Path) -> None:
    here, there = study(tmp_path), study(tmp_path)
    mine, lost = claimed(here), claimed(there)
    lost.lock.close()
    assert [trial.number for trial in here.recover()] == [1]
    assert here.recover() == []
    again = claimed(here)
    assert (again.trial.params, again.place, again.origin) == (lost.trial.params, 2, 1)
    here.complete(mine, [1.0])
    again.lock.close()
    assert [trial.number for trial in there.recover()] == [2]
    third = claimed(there)
    assert (third.trial.params, third.place, third.origin) == (lost.trial.params, 2, 1)
    there.complete(third, [2.0])
    assert [trial.number for trial in here.trials()] == [0, 3]


def test_a_trial_that_is_carried_out_is_not_taken_away(tmp_path: Path) -> None:
    here, there = study(tmp_path), study(tmp_path)
    claim = claimed(here)
    assert there.recover() == []
    assert there.n_elsewhere() == 1
    here.give_back(claim)
    assert there.n_elsewhere() == 0
    assert claimed(there).trial.user_attrs[BASE] is True


def test_no_more_trials_are_begun_than_were_asked_for(tmp_path: Path) -> None:
    here, there = study(tmp_path), study(tmp_path)
    first, second = claimed(here, 2), claimed(there, 2)
    assert here.claim(2) is None
    here.fail(first, "no")
    there.complete(second, [0.5])
    assert here.claim(2) is None
    assert claimed(there, 3).place == 3


@pytest.mark.parametrize(
    "pruner", [{"kind": "median", "n_startup_trials": 2, "n_warmup_steps": 2}, {"kind": "hyperband"}]
)
def test_a_trial_far_below_the_others_is_stopped(tmp_path: Path, pruner: dict[str, Any]) -> None:
    here = study(tmp_path, pruner=pruner)
    for value in (0.7, 0.8, 0.9, 0.85):
        claim = claimed(here)
        with suppress(optuna.TrialPruned):
            for step in range(1, 10):
                claim.report(value, step)
        here.complete(claim, [value])
    n_stopped = 0
    for _ in range(4):
        claim = claimed(here)
        with suppress(optuna.TrialPruned):
            for step in range(1, 10):
                claim.report(0.1, step)
            continue
        n_stopped += 1
        here.prune(claim)
    assert n_stopped >= 3  # Hyperband: of its brackets one stops nobody


def test_the_best_trial_is_the_one_of_highest_quality_within_the_budget(tmp_path: Path) -> None:
    here = study(tmp_path, objectives=["quality", "latency"])
    for values in ((0.8, 5.0), (0.9, 9.0), (0.8, 4.0), (0.7, 1.0), (0.6, 2.0)):
        here.complete(claimed(here), values)
    assert [trial.number for trial in here.front()] == [1, 2, 3]
    best = {bound: here.best({"latency": bound} if bound else {}) for bound in (None, 5.0, 1.0, 0.5)}
    assert [trial and trial.number for trial in best.values()] == [1, 2, 3, None]


def test_the_key_that_makes_the_difference_is_the_important_one(tmp_path: Path) -> None:
    here = study(tmp_path)
    assert here.importances() == {}
    for _ in range(8):
        claim = claimed(here)
        here.complete(claim, [float(claim.trial.params["training.pair_method"] == "mean")])
    assert next(iter(here.importances())) == "training.pair_method"


def test_a_storage_that_is_not_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("not a database " * 100)
    with pytest.raises(WorkspaceError, match=r"optuna.db must be an Optuna storage that can be written"):
        study(tmp_path)


def test_a_trial_that_ends_while_lost_ones_are_looked_for_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = study(tmp_path), study(tmp_path)
    claim = claimed(there)
    ending = threading.Thread(target=there.complete, args=(claim, [1.0]))
    honest = here._is_alive

    def is_alive(number: int) -> bool:
        ending.start()
        ending.join(0.5)  # as long as it may take, were it let
        return honest(number)

    monkeypatch.setattr(here, "_is_alive", is_alive)
    assert here.recover() == []
    ending.join()
    assert [trial.state for trial in here.trials()] == [TrialState.COMPLETE]


def test_a_study_is_over_when_its_last_trial_is(tmp_path: Path) -> None:
    here, there = study(tmp_path), study(tmp_path)
    assert not here.is_over(1)
    first = claimed(there)
    assert not here.is_over(1)
    there.give_back(first)
    assert not here.is_over(1)
    here.complete(claimed(here), [1.0])
    assert here.is_over(1)
    assert not here.is_over(2)

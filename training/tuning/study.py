"""One search in Optuna's storage: who tries what next, shared by processes any of which may be killed.

A process that tries something holds a lock on a file of its own; the kernel frees it however the process ends, so
that a trial left behind is known at once, whatever killed it.
"""

from __future__ import annotations

import fcntl
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from models.errors import WorkspaceError
from training.tuning.config import Cost, HyperbandPruner, MedianPruner, TuneConfig
from training.tuning.space import Space

_TIMEOUT_S = 60
"""How long a process waits for another one's write to the storage."""

AGAIN = "again"
"""Attribute of a trial that takes the place of one whose process was lost: the number of that one."""
ORIGIN = "origin"
"""Attribute of the same: the number of the first trial with these values."""
BASE = "base"
"""Attribute of the trial of the base configuration."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that this process carries out: which one of all it is (from 1), and the lock that says it is alive."""

    trial: optuna.Trial
    place: int
    lock: IO[str]

    @property
    def origin(self) -> int:
        """The number of the first trial with these values, where earlier ones were lost."""
        return int(self.trial.user_attrs.get(ORIGIN, self.trial.number))

    def report(self, value: float, step: int) -> None:
        """Report quality so far; raises `optuna.TrialPruned` where the pruner thinks that it leads nowhere.

        With several objectives nothing: Optuna stops no trial then.
        """
        if len(self.trial.study.directions) > 1:
            return
        self.trial.report(value, step)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"{value:.4f} at step {step}")


class Study:
    """The trials of one study; every method may be called by several processes at once.

    directory: the study's own, beside the storage that all studies of a workspace share. WorkspaceError where the
    storage cannot be read or written.
    """

    def __init__(self, directory: Path, config: TuneConfig, space: Space) -> None:
        self.directory = directory
        self._config = config
        self._space = space
        self._storage = directory.parent / "optuna.db"
        directory.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._translated(), _locked(directory.parent / ".lock"):
            self._study = optuna.create_study(
                study_name=directory.name,
                storage=_open(self._storage),
                directions=["maximize" if name == "quality" else "minimize" for name in config.objectives],
                pruner=_pruner(config),
                load_if_exists=True,
            )
            if not self._study.get_trials(deepcopy=False) and (base := space.of_base()) is not None:
                self._study.enqueue_trial(base, user_attrs={BASE: True})

    def claim(self, n_trials: int) -> Claim | None:
        """Begin the next trial; None where `n_trials` have been begun. What was given back is tried first.

        The sampler is seeded by the study's seed and the trial's place: a study that was stopped and goes on suggests
        what it would have suggested.
        """
        with self._translated(), self.alone():
            n_begun = len(self.begun())
            if n_begun >= n_trials:
                return None
            self._study.sampler = _sampler(self._config, n_begun)
            trial = self._study.ask(dict(self._space.distributions))
            lock = self._lock_file(trial.number).open("a+", encoding="utf-8")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Claim(trial, n_begun + 1, lock)

    def recover(self) -> list[FrozenTrial]:
        """Give back the trials whose process is no more; gives them."""
        with self._translated(), self.alone():
            lost = [one for one in self._in_state(TrialState.RUNNING) if not self._is_alive(one.number)]
            for trial in lost:
                self._give_back(trial)
            return lost

    def complete(self, claim: Claim, values: Sequence[float]) -> None:
        """End a trial with the value of each objective."""
        self._tell(claim, TrialState.COMPLETE, values)

    def prune(self, claim: Claim) -> None:
        """End a trial that was stopped early; its reported values still teach the sampler."""
        self._tell(claim, TrialState.PRUNED)

    def fail(self, claim: Claim, reason: str) -> None:
        """End a trial that cannot be carried out."""
        with self._translated():
            claim.trial.set_user_attr("reason", reason)
        self._tell(claim, TrialState.FAIL)

    def give_back(self, claim: Claim) -> None:
        """Stop a trial so that whoever goes on begins it again."""
        with self._translated(), self.alone():
            self._give_back(self._study.get_trials(deepcopy=False)[claim.trial.number])
            claim.lock.close()

    def trials(self) -> list[FrozenTrial]:
        """All trials that have ended by themselves or are under way, in order."""
        with self._translated():
            return self.begun()

    def begun(self) -> list[FrozenTrial]:
        """All trials but those that wait for somebody to begin them again, and those whose place was taken."""
        trials = self._study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs.get(AGAIN) for trial in trials}
        return [one for one in trials if one.state != TrialState.WAITING and one.number not in replaced]

    def complete_trials(self) -> list[FrozenTrial]:
        """Trials with a value of every objective, in order."""
        return [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]

    def is_over(self, n_trials: int) -> bool:
        """Whether `n_trials` have been begun and none of them is left to end or to be begun again."""
        with self._translated(), self.alone():
            return len(self.begun()) >= n_trials and not self._in_state(TrialState.RUNNING)

    def n_elsewhere(self) -> int:
        """How many trials are under way, in this process or another."""
        return sum(trial.state == TrialState.RUNNING and self._is_alive(trial.number) for trial in self.trials())

    def best(self, budget: Mapping[Cost, float]) -> FrozenTrial | None:
        """Give the complete trial of highest quality within `budget`; of equal ones the one that costs least."""
        within = [trial for trial in self.complete_trials() if self._is_within(trial, budget)]
        return min(within, key=lambda trial: (-trial.values[0], *trial.values[1:], trial.number), default=None)

    def front(self) -> list[FrozenTrial]:
        """Complete trials of which none beats another in every objective, from the highest quality down."""
        with self._translated():
            return sorted(self._study.best_trials, key=lambda trial: (-trial.values[0], trial.number))

    def importances(self) -> dict[str, float]:
        """Give the share that each key has in the differences of quality (`optuna.importance`), largest first.

        {} below four complete trials, or where quality does not differ.
        """
        complete = self.complete_trials()
        if len(complete) < _FEW or len({trial.values[0] for trial in complete}) == 1:
            return {}
        # PED-ANOVA (Watanabe et al. 2023) asks what makes the target low.
        with self._translated(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator", category=UserWarning)
            return optuna.importance.get_param_importances(self._study, target=lambda trial: -trial.values[0])

    def remember(self, name: str, value: Any) -> None:
        """Keep a fact (JSON) with the study."""
        with self._translated():
            self._study.set_user_attr(name, value)

    def recall(self, name: str) -> Any:
        """Give a fact that was kept, or None."""
        with self._translated():
            return self._study.user_attrs.get(name)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process begin, end or give back a trial of this study."""
        with _locked(self.directory / ".ask"):
            yield

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Wait until no other process finishes this study; one of them trains the best configuration."""
        with _locked(self.directory / ".finish"):
            yield

    def _tell(self, claim: Claim, state: TrialState, values: Sequence[float] | None = None) -> None:
        with self._translated(), self.alone():
            self._study.tell(claim.trial, values, state)
            claim.lock.close()
            self._lock_file(claim.trial.number).unlink(missing_ok=True)

    def _give_back(self, trial: FrozenTrial) -> None:
        """Put its values in the queue, then end it: killed in between, it is only ended."""
        if all(other.user_attrs.get(AGAIN) != trial.number for other in self._study.get_trials(deepcopy=False)):
            # A process killed while it began the trial may not have got to all values.
            params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            is_base = {BASE: True} if trial.user_attrs.get(BASE) else {}
            origin = trial.user_attrs.get(ORIGIN, trial.number)
            self._study.enqueue_trial(params, user_attrs={AGAIN: trial.number, ORIGIN: origin, **is_base})
        self._study.tell(trial.number, state=TrialState.FAIL)
        self._lock_file(trial.number).unlink(missing_ok=True)

    def _in_state(self, state: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(state,))

    def _is_within(self, trial: FrozenTrial, budget: Mapping[Cost, float]) -> bool:
        values = dict(zip(self._config.objectives, trial.values, strict=True))
        return all(values[cost] <= bound for cost, bound in budget.items())

    def _lock_file(self, number: int) -> Path:
        return self.directory / f".trial-{number}"

    def _is_alive(self, number: int) -> bool:
        """Whether a process holds the lock of a trial."""
        try:
            with self._lock_file(number).open(encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise WorkspaceError(
                f"{self._storage} must be an Optuna storage that can be written, got: {reason}; free some space, or "
                "move it away to begin anew"
            ) from error


_FEW = 4


def _open(path: Path) -> optuna.storages.RDBStorage:
    """Open or make the SQLite storage, with a log that lets readers read while somebody writes."""
    with closing(sqlite3.connect(path, timeout=_TIMEOUT_S)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    return optuna.storages.RDBStorage(
        f"sqlite:///{path.absolute()}", engine_kwargs={"connect_args": {"timeout": _TIMEOUT_S}}
    )


def _sampler(config: TuneConfig, place: int) -> optuna.samplers.BaseSampler:
    seed = int(np.random.SeedSequence([config.seed % 2**32, place]).generate_state(1)[0])
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    if config.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=config.n_startup_trials)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.n_startup_trials, multivariate=True)


def _pruner(config: TuneConfig) -> optuna.pruners.BasePruner:
    match config.pruner:
        case MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup):
            return optuna.pruners.MedianPruner(startup, warmup)
        case HyperbandPruner(min_resource=resource, reduction_factor=factor):
            return optuna.pruners.HyperbandPruner(resource, reduction_factor=factor)
        case None:
            return optuna.pruners.NopPruner()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; wait for whoever holds it."""
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""One process's part in a study: begin trials, carry them out, and keep what came of each in MLflow."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState

from models.errors import RankyardError, RefusedError, UnavailableError, WorkspaceError
from registry.run import Run
from registry.tracking import Tracking
from training.fit import Recorder
from training.tuning.config import TuneConfig
from training.tuning.space import Space
from training.tuning.study import BASE, Claim, Study
from training.tuning.trial import Bench, Outcome

EXPERIMENT = "tuning"
RUN_ID = "run_id"
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}

_MAX_FAILED = 5
"""Trials that may fail before one is complete; after that the study itself is at fault."""
_POLL_S = 0.5


@dataclass(frozen=True)
class Order:
    """A study: what is searched, the data, the name of the model, and how long or with how many processes."""

    config: TuneConfig
    space: Space
    data: Path
    name: str
    n_trials: int
    timeout_s: float | None = None
    n_workers: int = 1


@dataclass(frozen=True)
class Part:
    """What a process needs to take part; `who` begins each of its lines."""

    order: Order
    bench: Bench
    study: Study
    tracking: Tracking
    terminal: Recorder
    parent_id: str
    who: str = ""

    def work(self, deadline: float | None) -> None:
        """Carry out trials until there are enough, or `deadline` (`time.monotonic`); one that runs is not cut off."""
        while deadline is None or time.monotonic() < deadline:
            for lost in self.study.recover():
                self.terminal.say(f"{self.who}trial {lost.number} was left unfinished: it is tried again")
                if lost.user_attrs.get(RUN_ID):
                    self.tracking.start(EXPERIMENT, "", run_id=lost.user_attrs[RUN_ID]).finish("KILLED")
            claim = self.study.claim(self.order.n_trials)
            if claim is not None:
                self._try(claim)
            elif self.study.is_over(self.order.n_trials):
                return
            else:
                time.sleep(_POLL_S)  # should a process end before its trial, the trial is ours

    def _try(self, claim: Claim) -> None:
        """Carry out one trial; that it cannot be carried out is a result, too, unless it is nobody's configuration."""
        scratch = self.study.directory / f"scratch-{claim.origin}"
        scratch.mkdir(exist_ok=True)
        try:
            with self._record(claim) as record:
                self._carry_out(claim, record, scratch)
        except (KeyboardInterrupt, WorkspaceError, UnavailableError):
            self.study.give_back(claim)
            raise
        except Exception as error:
            self._fail(claim, error)
        shutil.rmtree(scratch, ignore_errors=True)

    def _record(self, claim: Claim) -> Run:
        record = self.tracking.start(EXPERIMENT, f"trial {claim.trial.number}", parent_id=self.parent_id)
        claim.trial.set_user_attr(RUN_ID, record.id)
        record.parameters(self.order.space.values(claim.trial.params))
        record.tags({"rankyard.study": self.study.directory.name, "rankyard.trial": claim.trial.number})
        return record

    def _carry_out(self, claim: Claim, record: Run, scratch: Path) -> None:
        begin = time.perf_counter()
        config = self.order.space.config(claim.trial.params)
        try:
            outcome = self.bench.run(config, record, self.terminal, claim.report, scratch)
        except optuna.TrialPruned as stopped:
            self.study.prune(claim)
            self._said(claim, record, TrialState.PRUNED, f"stopped early with {stopped}", time.perf_counter() - begin)
        else:
            self.study.complete(claim, outcome.values)
            _log(record, outcome, self.order.config.objectives)
            figures = named(self.order.config.objectives, outcome.values)
            self._said(claim, record, TrialState.COMPLETE, figures, time.perf_counter() - begin)

    def _said(self, claim: Claim, record: Run, state: TrialState, figures: str, seconds: float) -> None:
        record.tags({"rankyard.state": STATES[state]})
        record.describe(figures)
        self.terminal.say(f"{self._start(claim)}: {figures}, {seconds:.1f} s: {self._shown(claim)}")

    def _fail(self, claim: Claim, error: Exception) -> None:
        """Keep why a trial failed; raises where it is the base configuration, or nothing has worked yet."""
        if claim.trial.user_attrs.get(BASE):
            self.study.give_back(claim)
            raise error
        reason = error.message if isinstance(error, RankyardError) else f"{type(error).__name__}: {error}"
        self.study.fail(claim, reason)
        self.terminal.say(f"{self._start(claim)}: failed, {reason}: {self._shown(claim)}")
        failed = [trial for trial in self.study.trials() if trial.state == TrialState.FAIL]
        if len(failed) >= _MAX_FAILED and not self.study.complete_trials():
            raise RefusedError(
                f"a study needs a trial that can be carried out, {len(failed)} failed; the last: {reason}"
            )

    def _start(self, claim: Claim) -> str:
        return f"{self.who}{claim.place} of {self.order.n_trials}, trial {claim.trial.number}"

    def _shown(self, claim: Claim) -> str:
        values = self.order.space.values(claim.trial.params)
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in values.items())


def named(objectives: Sequence[str], values: Sequence[float]) -> str:
    """A trial's values for a person: `quality 0.7012, latency 1.2 ms, size 340 kB`."""
    shown = {"quality": "{:.4f}", "latency": "{:.3g} ms", "size": "{:.3g} MB"}
    scale = {"size": 1e-6}
    return ", ".join(
        f"{name} {shown[name].format(value * scale.get(name, 1))}"
        for name, value in zip(objectives, values, strict=True)
    )


def _log(record: Run, outcome: Outcome, objectives: Sequence[str]) -> None:
    named_values = dict(zip(objectives, outcome.values, strict=True))
    record.metrics({f"objective.{name}": value for name, value in named_values.items()} | outcome.figures)
    record.parameters({f"fit.{name}": value for name, value in outcome.facts.items()})

"""`rankyard tune`: try configurations, keep what was found, train the best one through the line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from models.errors import RefusedError
from registry import files
from registry.references import check_name
from registry.run import Run
from registry.tracking import Tracking
from registry.workspace import Workspace
from training import line
from training.fit import Recorder
from training.terminal import Terminal
from training.tuning import workers
from training.tuning.pictures import pictures
from training.tuning.study import BASE, Study
from training.tuning.trial import Bench
from training.tuning.trials import EXPERIMENT, RUN_ID, STATES, Order, Part, named

_TRAINED = "trained"


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a study came to: the best configuration's registered model, and the trials it was chosen from."""

    trained: Mapping[str, Any]
    """name, version, run_id, bundle and metrics, as `train` prints them."""
    study: str
    study_run_id: str
    best: FrozenTrial
    best_config: Path
    base: FrozenTrial | None
    front: tuple[FrozenTrial, ...]
    counts: Mapping[str, int]
    objectives: tuple[str, ...]
    seconds: float

    def answer(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            **self.trained,
            "seconds": round(self.seconds, 2),
            "study": self.study,
            "study_run_id": self.study_run_id,
            "best_config": str(self.best_config),
            "best": self._trial(self.best),
            "base": None if self.base is None else self._trial(self.base),
            "front": [self._trial(trial) for trial in self.front],
            "trials": dict(self.counts),
        }

    def summary(self) -> str:
        """A few lines for the terminal."""
        counts = ", ".join(f"{n} {state}" for state, n in self.counts.items() if n)
        lines = [f"best is trial {self.best.number} ({counts}): {named(self.objectives, self.best.values)}"]
        if self.base is not None:
            lines.append(f"base configuration: {named(self.objectives, self.base.values)}")
        if len(self.front) > 1:
            lines.append("none of these beats another in every objective:")
            lines += [f"  trial {one.number}: {named(self.objectives, one.values)}" for one in self.front]
        metrics = list(self.trained["metrics"].items())[-1]
        figures = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics[1].items())
        return "\n".join(
            [
                *lines,
                f"best configuration: {self.best_config}",
                f"trained as {self.trained['name']}/{self.trained['version']}: {metrics[0]} {figures}",
            ]
        )

    def _trial(self, trial: FrozenTrial) -> dict[str, Any]:
        values = dict(zip(self.objectives, trial.values, strict=True))
        return {"trial": trial.number, "values": values, "config": str(self.best_config.with_name(_file(trial)))}


def run(order: Order, tracking: Tracking, terminal: Recorder) -> Tuned:
    """Go on with the study of this name, search space and data until it has `n_trials`; train the best configuration.

    The same command goes on where it was stopped, and a second one joins the first. RefusedError where no trial could
    be carried out, or none is within the budget.
    """
    started = time.monotonic()
    check_name(order.name)
    bench = Bench(order.config, order.space, order.data, tracking)
    for note in bench.notes:
        terminal.say(f"note: {note}")
    study = _study(order, bench, tracking.workspace.open())
    deadline = None if order.timeout_s is None else started + order.timeout_s
    with _record(study, order, bench, tracking) as record:
        _say_plan(order, study, terminal)
        if order.n_workers == 1:
            Part(order, bench, study, tracking, terminal, record.id).work(deadline)
        else:
            arguments = (order, tracking.workspace.root, tracking.uri, record.id, deadline)
            workers.run(order.n_workers, _worker, arguments, terminal.say)
        with study.finishing():
            tuned = _finish(order, study, record, tracking, terminal, started)
        record.describe(tuned.summary())
    return tuned


def _worker(number: int, order: Order, root: Path, uri: str, parent_id: str, deadline: float | None) -> None:
    """Carry out trials in a process of its own."""
    tracking = Tracking(Workspace(root), uri)
    bench = Bench(order.config, order.space, order.data, tracking)
    study = _study(order, bench, tracking.workspace)
    Part(order, bench, study, tracking, Terminal(), parent_id, f"worker {number}, ").work(deadline)


def _study(order: Order, bench: Bench, workspace: Workspace) -> Study:
    """Open the study that name, search space, base configuration and data stand for; `budget` only chooses from it."""
    told = {
        "config": order.config.model_dump(mode="json", exclude={"base", "budget"}),
        "base": order.space.config({}).model_dump(mode="json"),
        "data": {split: one.sha256 for split, one in bench.digests.items()},
        "teacher": bench.teachers or None,
    }
    fingerprint = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return Study(workspace.tuning / f"{order.name}-{fingerprint[:12]}", order.config, order.space)


def _record(study: Study, order: Order, bench: Bench, tracking: Tracking) -> Run:
    """Start the study's run, or continue it."""
    with study.alone():
        known = study.recall(RUN_ID)
        record = tracking.start(EXPERIMENT, study.directory.name, run_id=known)
        if known is None:
            study.remember(RUN_ID, record.id)
            record.parameters(order.space.config({}).model_dump(mode="json"))
            record.datasets(order.name, bench.digests)
            record.text(yaml.safe_dump(order.config.model_dump(mode="json"), sort_keys=False), "study.yaml")
    return record


def _say_plan(order: Order, study: Study, terminal: Recorder) -> None:
    n_done = len(study.complete_trials())
    n_begun = len(study.trials())
    if n_begun < order.n_trials:
        goes_on = f"goes on with trial {n_begun + 1} of {order.n_trials}, {n_done} are complete"
        terminal.say(f"{study.directory.name} " + (goes_on if n_begun else f"begins: {order.n_trials} trials"))
    else:
        terminal.say(f"{study.directory.name} has its {order.n_trials} trials")
    if n_elsewhere := study.n_elsewhere():
        terminal.say(f"note: trials that other processes carry out now: {n_elsewhere}")
    if order.space.of_base() is None:
        terminal.say("note: the base configuration lies outside the space: it is not tried")
    if len(order.config.objectives) > 1:
        terminal.say("note: with several objectives no trial is stopped early")
    if "latency" in order.config.objectives and order.n_workers > 1:
        terminal.say("note: latency is measured while other workers train; with --workers 1 it is undisturbed")


def _finish(order: Order, study: Study, record: Run, tracking: Tracking, terminal: Recorder, started: float) -> Tuned:
    """Write the best configuration and those of the front, train the best one, draw what was found."""
    best = study.best(order.config.budget)
    if best is None:
        raise RefusedError(_nothing_found(order, study))
    trials, front = study.trials(), study.front() if len(order.config.objectives) > 1 else []
    base = next((one for one in study.complete_trials() if one.user_attrs.get(BASE)), None)
    for trial in {one.number: one for one in (best, *front, *([base] if base else ()))}.values():
        files.replace(study.directory / _file(trial), _yaml(order, study, trial, base))
    best_config = study.directory / "best.yaml"
    files.replace(best_config, _yaml(order, study, best, base))
    for name, figure in pictures(trials, order, best, base, front, study.importances()).items():
        record.figure(figure, name)
    record.file(best_config)
    record.text(_table(trials, order), "trials.csv")
    counts = {name: sum(trial.state == state for trial in trials) for state, name in STATES.items()}
    record.metrics({f"best.{name}": value for name, value in _values(order, best).items()})
    record.metrics({f"trials.{name.replace(' ', '_')}": n for name, n in counts.items()})
    return Tuned(
        trained=_train(order, study, best, tracking, terminal),
        study=study.directory.name,
        study_run_id=record.id,
        best=best,
        best_config=best_config,
        base=base,
        front=tuple(front),
        counts=counts,
        objectives=order.config.objectives,
        seconds=time.monotonic() - started,
    )


def _train(order: Order, study: Study, best: FrozenTrial, tracking: Tracking, terminal: Recorder) -> Mapping[str, Any]:
    """Train and register the best configuration, unless that was done by another process or before."""
    known = study.recall(_TRAINED)
    if known is not None and known["trial"] == best.number and Path(known["answer"]["bundle"]).exists():
        return dict(known["answer"])
    terminal.say(f"training the configuration of trial {best.number}")
    trained = line.run(line.Order(order.space.config(best.params), order.data, order.name), tracking, terminal)
    answer = {
        "name": trained.name,
        "version": trained.version,
        "run_id": trained.run_id,
        "bundle": str(trained.bundle.path),
        "metrics": trained.metrics,
    }
    study.remember(_TRAINED, {"trial": best.number, "answer": answer})
    return answer


def _nothing_found(order: Order, study: Study) -> str:
    complete = study.complete_trials()
    if not complete:
        return f"a study needs a complete trial, none of {len(study.trials())} is; give more --trials or --timeout"
    least = [
        f"the least {cost} is {min(_values(order, trial)[cost] for trial in complete):g}, the budget {bound:g}"
        for cost, bound in order.config.budget.items()
    ]
    return (
        f"a trial must be within the budget, none of {len(complete)} is: {'; '.join(least)}; raise it or search wider"
    )


def _values(order: Order, trial: FrozenTrial) -> dict[str, float]:
    return dict(zip(order.config.objectives, trial.values, strict=True))


def _file(trial: FrozenTrial) -> str:
    return f"trial-{trial.number}.yaml"


def _yaml(order: Order, study: Study, trial: FrozenTrial, base: FrozenTrial | None) -> str:
    """A trial's whole configuration, defaults included, under a comment that says where it comes from."""
    config = order.space.config(trial.params).model_dump(mode="json")
    values = [
        f"# Trial {trial.number} of the study {study.directory.name}: {named(order.config.objectives, trial.values)}"
    ]
    if base is not None and base.number != trial.number:
        values.append(f"# The base configuration there: {named(order.config.objectives, base.values)}")
    changed = ", ".join(f"{key} {value}" for key, value in order.space.values(trial.params).items())
    comment = [
        *values,
        "# Quality is that of the valid split, latency ms of a call, size bytes.",
        f"# Searched: {changed}",
    ]
    return "\n".join([*comment, yaml.safe_dump(config, sort_keys=False)])


def _table(trials: list[FrozenTrial], order: Order) -> str:
    """All trials as CSV."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["trial", "state", *order.config.objectives, "seconds", *order.space.entries])
    for trial in trials:
        values = trial.values if trial.state == TrialState.COMPLETE else [""] * len(order.config.objectives)
        seconds = "" if trial.duration is None else round(trial.duration.total_seconds(), 1)
        params = order.space.values(trial.params)
        writer.writerow(
            [trial.number, trial.state.name, *values, seconds, *(params.get(key) for key in order.space.entries)]
        )
    return out.getvalue()

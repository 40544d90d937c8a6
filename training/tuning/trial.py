"""One trial of a study: the line from fit to judged export, on train and valid alone, nothing registered."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ConfigError
from models.manifest import Contents, SplitDigest
from models.metrics import MAIN_METRIC
from models.model import Model, open_model
from registry.bundle import VARIANTS
from registry.evaluation import Report
from registry.run import Run
from registry.tracking import Tracking
from training import line
from training.config import RankingPairsConfig, TrainConfig
from training.data.splits import Splits
from training.fit import Checkpoint, Fitted, Recorder
from training.proof import Proof
from training.tuning.config import Objective, TuneConfig
from training.tuning.space import Space, latency_calls

_N_RESAMPLES = 100
"""Intervals of a trial are read by nobody."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trial's value of each objective, means over its trainings; what else was measured; what the fit decided."""

    values: tuple[float, ...]
    figures: dict[str, float]
    facts: Mapping[str, float | int | str]


class Bench:
    """Where this process carries out trials: data read once, texts embedded once, models opened once.

    Data is read by the base configuration, once for each of `repeats` seeds. The test split is read with the others, so
    that bad rows are refused before hours go into a study, and then let go: no trial sees it.
    """

    def __init__(self, config: TuneConfig, space: Space, data: Path, tracking: Tracking) -> None:
        self._config = config
        self._tracking = tracking
        self._call = config.latency_call or usual_call(space.task)
        self._is_timed = "latency" in config.objectives
        base = space.config({})
        self._metric = MAIN_METRIC[base.task]
        self._family: Any = line.family_of(base.task)
        if getattr(base.training, "engine", "local") == "torchrun":
            raise ConfigError(
                "a trial trains in its own process, training.engine of the base configuration is torchrun; "
                "leave it out there, and train the best configuration with it",
                field="training.engine",
            )
        read = [line.read(line.Order(_seeded(base, repeat), data, "")) for repeat in range(config.repeats)]
        self.notes: tuple[str, ...] = read[0].notes
        self._splits: list[Splits[Any]] = [replace(splits, test=None) for splits in read]
        self.teachers = [origin.digest for origin in line.with_teachers(base, tracking)[1]]
        """Digests of the bundles that a student's base configuration learns from."""
        self._opened: dict[int, tuple[str, Model]] = {}
        self._featurizers: dict[Any, Any] = {}

    @property
    def digests(self) -> dict[str, SplitDigest]:
        """What the trials of the first seed are trained and judged on."""
        return {
            split: SplitDigest(file=rows.file, rows=len(rows), sha256=rows.sha256)
            for split, rows in self._splits[0].sources().items()
        }

    def run(
        self, config: TrainConfig, record: Run, terminal: Recorder, report: Callable[[float, int], None], scratch: Path
    ) -> Outcome:
        """Train with each seed and judge; `report` gets the quality so far, and may raise to stop the trial.

        Quality is reported at every step of the curve, or with `repeats` after each training (the mean so far).
        scratch: a directory of the study; an unfinished network training leaves its checkpoint there and goes on.
        """
        outcomes: list[Outcome] = []
        for repeat, splits in enumerate(self._splits):
            is_alone = self._config.repeats == 1
            seeded = _seeded(config, repeat)
            suffix = "" if is_alone else f".seed_{seeded.training.seed}"
            listener = _Listener(record, terminal, report if is_alone else None, self._metric, suffix)
            outcomes.append(self._train(seeded, splits, repeat, listener, scratch))
            if not is_alone:
                report(float(np.mean([one.values[0] for one in outcomes])), repeat + 1)
        means = [float(np.mean(values)) for values in zip(*(one.values for one in outcomes), strict=True)]
        figures = {name: float(np.mean([one.figures[name] for one in outcomes])) for name in outcomes[0].figures}
        return Outcome(tuple(means), figures, outcomes[0].facts)

    def _train(
        self, config: TrainConfig, splits: Splits[Any], repeat: int, recorder: Recorder, scratch: Path
    ) -> Outcome:
        begin = time.perf_counter()
        fingerprint = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
        config, _ = line.with_teachers(config, self._tracking)
        directory = scratch / f"checkpoint-{fingerprint[:16]}"
        checkpoint = Checkpoint(directory, fingerprint, resume=directory.exists())
        with self._kept(config):
            fitted: Fitted = self._family.fit(config, splits, recorder, checkpoint)
        with tempfile.TemporaryDirectory(dir=scratch, prefix="draft-") as draft:
            contents = fitted.write(Path(draft))
            proof = Proof(
                Path(draft), contents, config, splits, recorder,
                model=self._open(Path(draft), contents, repeat), is_timed=self._is_timed,
            )  # fmt: skip
            report, _ = proof.run(fitted)
        checkpoint.clear()
        figures = self._figures(report) | {"seconds": time.perf_counter() - begin}
        return Outcome(
            tuple(self._value(name, report) for name in self._config.objectives), figures, fitted.parameters()
        )

    def _kept(self, config: TrainConfig) -> AbstractContextManager[None]:
        if not isinstance(config, RankingPairsConfig):
            return nullcontext()
        from training.pairs import kept

        return kept(self._featurizers)

    def _open(self, directory: Path, contents: Contents, repeat: int) -> Model:
        """Open a model, or give the one that was opened before where all but the network itself is the same."""
        digest = hashlib.sha256(contents.model_dump_json().encode())
        for file in sorted(directory.iterdir()):
            if file.name not in VARIANTS.values():
                digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        known = self._opened.get(repeat)
        if known is None or known[0] != digest.hexdigest():
            self._opened[repeat] = known = (digest.hexdigest(), open_model(directory, contents))
        return known[1]

    def _value(self, objective: Objective, report: Report) -> float:
        served = report.served
        match objective:
            case "quality":
                return served.quality["valid"].metrics[self._metric]
            case "latency":
                return served.latency[self._call].total_p50_ms
            case "size":
                return float(served.size_bytes)

    def _figures(self, report: Report) -> dict[str, float]:
        served = report.served
        figures = {f"valid.{name}": value for name, value in served.quality["valid"].metrics.items()}
        figures |= {f"latency.{call}.p50_ms": latency.total_p50_ms for call, latency in served.latency.items()}
        return figures | {"size_bytes": float(served.size_bytes)}


class _Listener:
    """A `Recorder` of one training: curves to MLflow, bars to the person, the main metric to the pruner."""

    def __init__(
        self, record: Run, terminal: Recorder, report: Callable[[float, int], None] | None, metric: str, suffix: str
    ) -> None:
        self._record = record
        self._terminal = terminal
        self._report = report
        self._metric = f"valid_{metric}"
        self._suffix = suffix

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log the step, then report it: what is reported may end the trial."""
        self._record.metrics({name + self._suffix: value for name, value in values.items()}, step)
        if self._report is not None and self._metric in values:
            self._report(values[self._metric], step)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the person's bar."""
        self._terminal.progress(stage, done, total)

    def say(self, sentence: str) -> None:
        """Keep the line for the trial's log."""
        self._record.say(sentence)


def usual_call(task: str) -> str:
    """The call that `latency` means: one text, or a list of a hundred candidates."""
    return latency_calls(task)[1 if task == "ranking" else 0]


def _seeded(config: TrainConfig, repeat: int) -> TrainConfig:
    """The configuration with the seed of a repeat, and quick intervals."""
    training = config.training.model_copy(update={"seed": config.training.seed + repeat})
    evaluate = config.evaluate.model_copy(update={"n_resamples": _N_RESAMPLES})
    return config.model_copy(update={"training": training, "evaluate": evaluate})

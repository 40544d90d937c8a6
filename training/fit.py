"""What the line asks of a family's `fit`, and what it lends to it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from models.batch import Arrays, Encoded
from models.manifest import Contents
from training.data.splits import Splits


class Recorder(Protocol):
    """Where a training says how it goes; `registry.tracking` and the terminal both listen."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step (an epoch, or a tree)."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of `stage` are finished."""

    def say(self, sentence: str) -> None:
        """One line for the person who waits."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where an unfinished training keeps its state, and whether to go on from what is there.

    `fingerprint` names configuration and data: a checkpoint of another fingerprint is never continued.
    """

    directory: Path
    fingerprint: str
    resume: bool = False

    def of_refit(self) -> Checkpoint:
        """Where a refit keeps its own, beside that of the training before; it goes on where there is something."""
        directory = self.directory / "refit"
        return replace(self, directory=directory, resume=self.resume and directory.exists())

    def clear(self) -> None:
        """Forget the state: what was trained is kept elsewhere, or the training begins anew."""
        shutil.rmtree(self.directory, ignore_errors=True)


def is_refitted(training: object, splits: Splits[Any]) -> bool:
    """Whether a fit learns from valid too, once valid has chosen: where its settings ask for it and test is there.

    Valid is then not held out any more, and nothing is reported of it.
    """
    return bool(getattr(training, "refit", False)) and splits.test is not None


def refit_notes(training: object, *, has_test: bool) -> tuple[str, ...]:
    """What to say of a refit that is asked for and left out."""
    if has_test or not getattr(training, "refit", False):
        return ()
    return ("no test file: training.refit is left out, so that valid can judge",)


class Refitting:
    """Listens to a refit: its curves and its steps are not those of the training before."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step, named apart."""
        self._recorder.metrics({f"refit_{name}": value for name, value in values.items()}, step)

    def progress(self, _stage: str, done: int, total: int) -> None:
        """`done` of `total` steps are finished."""
        self._recorder.progress("refit", done, total)

    def say(self, sentence: str) -> None:
        """One line for the person who waits."""
        self._recorder.say(sentence)


class Fitted(Protocol):
    """A trained model, still in its own library."""

    def write(self, directory: Path) -> Contents:
        """Write `model.onnx` and every file its model reads (`tokenizer.json`, `features.json`, ...)."""

    def outputs(self, requests: Sequence[Encoded]) -> list[Arrays]:
        """The source library's own outputs for each request, named and shaped as the ONNX outputs after `split`."""

    def parameters(self) -> Mapping[str, float | int | str]:
        """What the fit itself decided, to be logged: best iteration or epoch, number of n-grams, ..."""

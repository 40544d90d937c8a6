"""How a training tells a person how it goes: bars on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_EVERY_S = 10.0


class Terminal:
    """A `Recorder` (see `training.fit`) for people."""

    def __init__(self, bars: Progress | None = None) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._said_at = time.monotonic()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Say the figures of an epoch or tree; nothing when there are bars and the step is one of very many."""
        if step <= _FEW or step % _FEW == 0:
            self.say(f"  step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the stage's bar; without a terminal, a line every ten seconds."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            if done >= total:
                self._bars.remove_task(self._tasks.pop(stage))
        elif time.monotonic() - self._said_at > _PLAIN_EVERY_S:
            self._said_at = time.monotonic()
            self.say(f"  {stage}: {done} of {total}")

    def say(self, sentence: str) -> None:
        """Print one line."""
        if self._bars is not None:
            self._bars.console.print(sentence, highlight=False, markup=False)
        else:
            # In one write, lest a Ctrl-C comes between a line and its end.
            print(f"{sentence}\n", end="", file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal


_FEW = 50
"""Epochs are few and all said; of thousands of trees every fiftieth."""


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Give the terminal for the time of one command."""
    if not sys.stderr.isatty():
        yield Terminal()
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Terminal(bars)

"""What `rankyard tune triton` is asked for, and the space that follows from it."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from models.config import Config, validate
from models.errors import InputError
from serving.triton.settings import Count
from serving.triton.tuning.search import Space

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_DELAYS_US = (0, 100, 500, 1_000, 5_000, 20_000)
_DELAY_SHARE = 2
"""A request that waits half of the limit has no time left to be answered."""
_BATCHES = ((4, 8), (8, 16), (8, 16, 32), (16, 32, 64))
"""Preferred batch sizes, in requests."""
_US = 1_000


class SweepSettings(Config):
    """One sweep.

    p99_ms: within which 99 of 100 requests must be answered. concurrency: closed loops of so many callers, in turn;
    rates: open loops of so many requests a second instead. size: texts of a request, or documents of a list (None: 1
    text, 100 documents). queries: a file, one a line, instead of generated ones. seconds, warmup_seconds: of each loop.
    trials: schedulings at most, before the finals. repeats: rounds of the finals. seed: of order and traffic.
    """

    p99_ms: Positive
    concurrency: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 32, 64)
    rates: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    size: Count | None = None
    queries: Path | None = None
    seconds: Positive = 2.0
    warmup_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    trials: Count = 24
    repeats: Count = 5
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def loads(self) -> tuple[float, ...]:
        """Callers, or requests a second."""
        return self.concurrency if self.rates is None else self.rates

    @property
    def load_name(self) -> str:
        """What a load counts."""
        return "callers" if self.rates is None else "requests/s"


def sweep_settings(given: dict[str, Any]) -> SweepSettings:
    """Check what was given; InputError says what is wrong."""
    checked = validate(SweepSettings, given)
    if "concurrency" in given and "rates" in given:
        raise InputError("a load is given by one of --concurrency and --rates, got both; leave one out")
    if list(checked.loads) != sorted(set(checked.loads)):
        shown = ",".join(f"{load:g}" for load in checked.loads)
        raise InputError(f"loads must rise, got {shown}; give each once, the lowest first")
    return checked


def space(settings: SweepSettings, *, n_cores: int, needs_gpu: bool, n_rows: int, max_rows: int) -> Space:
    """What is worth trying on this machine. n_rows: of a request; max_rows: of the largest batch."""
    max_delay_us = int(settings.p99_ms * _US) // _DELAY_SHARE
    sizes = (tuple(n * n_rows for n in batch if n * n_rows <= max_rows) for batch in _BATCHES)
    return Space(
        loads=settings.loads,
        arrangements=_arrangements(n_cores, needs_gpu=needs_gpu),
        delays_us=[delay for delay in _DELAYS_US if delay <= max_delay_us],
        batch_sizes=list(dict.fromkeys(filter(None, sizes))),
        max_delay_us=max_delay_us,
    )


def _arrangements(n_cores: int, *, needs_gpu: bool) -> list[tuple[int, int]]:
    """(instances, threads), both by powers of two: from half of the cores to twice as many; a GPU knows no threads."""
    if needs_gpu:
        return [(n, 1) for n in (1, 2, 4)]
    powers = list(takewhile(lambda n: n <= 2 * n_cores, (1 << place for place in range(32))))
    return [
        (n, threads)
        for n in powers
        for threads in powers
        if threads <= n_cores and n_cores <= 2 * n * threads and n * threads <= 2 * n_cores
    ]

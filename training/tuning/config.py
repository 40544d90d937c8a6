"""The YAML of a study: what `rankyard tune` varies, what counts, and how the next trial is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, FiniteFloat, PositiveFloat, PositiveInt, Tag, model_validator

from models.config import Config

Objective = Literal["quality", "latency", "size"]
Cost = Literal["latency", "size"]


class Range(Config):
    """Numbers from `low` to `high`, both included."""

    low: int | FiniteFloat
    high: int | FiniteFloat
    log: bool = False
    """Whether ratios count rather than differences, as they do for rates and strengths."""
    step: Annotated[int | float, Field(gt=0)] | None = None
    """Distance between neighbouring values; null: 1 for whole numbers, any for others."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, they are {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 with log, it is {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("step and log exclude each other")
        if self.step is not None and not is_multiple(self.high - self.low, self.step):
            raise ValueError(
                f"high must be low and a multiple of step, they are {self.high:g}, {self.low:g}, {self.step:g}"
            )
        return self


def _kind(entry: Any) -> str | None:
    return "range" if isinstance(entry, Mapping | Range) else "choices" if isinstance(entry, list | tuple) else None


Choices = Annotated[tuple[Any, ...], Field(min_length=2)]
Entry = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(
        _kind,
        custom_error_type="entry",
        custom_error_message="must be a range {low: , high: } or a list of two or more values",
    ),
]


class MedianPruner(Config):
    """Stop a trial whose best value so far is below the median of the earlier trials at the same step."""

    kind: Literal["median"]
    n_startup_trials: int = Field(default=5, ge=0)
    """Complete trials before any is stopped."""
    n_warmup_steps: int = Field(default=0, ge=0)
    """Tree or epoch (with `repeats`: training) before which no trial is stopped."""


class HyperbandPruner(Config):
    """Successive halving in brackets that start at different numbers of steps (Li et al., JMLR 18, 2018)."""

    kind: Literal["hyperband"]
    min_resource: PositiveInt = 1
    """Trees or epochs (with `repeats`: trainings) that every trial may take."""
    reduction_factor: int = Field(default=3, ge=2)
    """One in so many trials goes on to the next rung."""


class TuneConfig(Config):
    """A study: what is varied, what counts, and how the next trial is chosen."""

    base: str
    """The configuration that is varied: a shipped one's name, or a file, looked up beside this one."""
    space: dict[str, Entry] = Field(min_length=1)
    """Dotted key of the configuration -> a range of numbers, or a list of values."""
    objectives: tuple[Objective, ...] = ("quality",)
    """quality: the family's main metric on valid. latency: median ms of a call of the exported model, one thread.
    size: bytes of the file that is served. Several give a front of trials of which none beats another in everything."""
    latency_call: str | None = None
    """The call whose latency counts; null: batch_1 for texts, list_100 for ranking."""
    budget: dict[Cost, PositiveFloat] = Field(default={})
    """Upper bounds of latency (ms) and size (bytes): the best trial is the one of highest quality within them."""
    repeats: PositiveInt = 1
    """Trainings of each trial, with seeds `training.seed`, + 1, + 2, ...; the mean counts. Where there is no valid
    file, each seed holds out another part of train."""
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    """tpe: Parzen estimators. gp: a Gaussian process, slower itself, for a few dozen trials. random: the baseline."""
    n_startup_trials: PositiveInt = 10
    """Random trials before the sampler learns from them."""
    pruner: Annotated[MedianPruner | HyperbandPruner, Field(discriminator="kind")] | None = None
    """Which trials are stopped early; null: none."""
    seed: int = 13
    """Of the sampler."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.objectives[:1] != ("quality",) or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(
                f"objectives must be quality and then, at most once each, latency and size: {self.objectives}"
            )
        if unused := [cost for cost in self.budget if cost not in self.objectives]:
            raise ValueError(f"budget bounds {unused[0]}, which is not one of objectives {list(self.objectives)}")
        if self.pruner is not None and len(self.objectives) > 1:
            raise ValueError("pruner works with one objective (Optuna stops no trial of several); leave it out")
        if self.latency_call is not None and "latency" not in self.objectives:
            raise ValueError("latency_call does nothing unless latency is one of objectives; leave it out")
        if self.sampler == "random" and "n_startup_trials" in self.model_fields_set:
            raise ValueError("n_startup_trials does nothing with sampler random; leave it out")
        return self


def is_multiple(value: float, step: float) -> bool:
    """Whether `value` is so many whole steps."""
    return math.isclose(value / step, round(value / step), abs_tol=1e-9)

"""Where `rankyard tune` looks: ranges and lists of values, checked against the configuration that they vary."""

from __future__ import annotations

import copy
import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel

from models.config import read, validate
from models.errors import ConfigError
from training.config import TrainConfig, parse
from training.latency import BATCH_SIZES, LIST_SIZES
from training.tuning.config import Entry, Range, TuneConfig, is_multiple

Value = bool | int | float | str | None

_N_DIGITS = 4
"""Significant digits of a suggested fraction: what is tried is what a person reads in the YAML."""

_FIXED = {
    "task": "a study is of one task",
    "model.kind": "a study is of one kind of model; write one for each",
    "training.engine": "where a model is trained does not make it better",
    "training.seed": "a lucky seed is not a better setting; `repeats` averages over seeds",
}


@dataclass(frozen=True)
class Space:
    """A checked search space: every suggestion makes a checked configuration of the base.

    Optuna keeps a list's values as they are where they are scalars, and as JSON otherwise (`labels`).
    """

    task: str
    base: Mapping[str, Any]
    entries: Mapping[str, Entry]
    distributions: Mapping[str, BaseDistribution]
    labels: Mapping[str, Mapping[Value, Any]]

    @classmethod
    def of(cls, config: TuneConfig, base: Mapping[str, Any], task: str) -> Space:
        """Check every key and every bound against the base; one ConfigError lists all mistakes."""
        checked = parse(base, task)
        mistakes: list[str] = []
        distributions: dict[str, BaseDistribution] = {}
        labels: dict[str, dict[Value, Any]] = {}
        for key, entry in config.space.items():
            tried, found = _tried(base, checked, key, entry)
            mistakes += [f"space.{key}: {mistake}" for mistake in found]
            if found:
                continue
            if isinstance(entry, Range):
                distributions[key] = _numbers(entry, is_whole=float not in _types(checked, key))
            else:
                labels[key] = {_label(value): value for value in tried}
                distributions[key] = CategoricalDistribution([*labels[key]])
        if config.latency_call is not None and config.latency_call not in latency_calls(task):
            calls = ", ".join(latency_calls(task))
            mistakes.append(f"latency_call must be one of {calls} for {task}, got {config.latency_call!r}")
        if mistakes:
            raise ConfigError("; ".join(mistakes), field=mistakes[0].partition(":")[0])
        return cls(task, base, config.space, distributions, labels)

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Give what Optuna suggested as it is written in a configuration."""
        return {
            key: self.labels[key][value] if key in self.labels else _rounded(value, self.distributions[key])
            for key, value in params.items()
        }

    def config(self, params: Mapping[str, Any]) -> TrainConfig:
        """Give the configuration of a suggestion; ConfigError where values that are good alone do not go together."""
        return parse(_changed(self.base, self.values(params)), self.task)

    def of_base(self) -> dict[str, Any] | None:
        """Give the base configuration as a suggestion; None where it lies outside the space."""
        checked = parse(self.base, self.task)
        params: dict[str, Any] = {}
        for key, entry in self.entries.items():
            value = _at(checked, key)
            params[key] = _label(value) if key in self.labels else value
            if not (params[key] in self.labels[key] if key in self.labels else _holds(entry, value)):
                return None
        return params


def read_tuning(name_or_path: str, overrides: Sequence[str], task: str) -> tuple[TuneConfig, Space]:
    """Read a study's YAML by path or shipped name; `overrides` (`a.b=c`) change its base. ConfigError otherwise."""
    config = validate(TuneConfig, read(name_or_path))
    beside = Path(name_or_path).parent / config.base
    base = str(beside) if beside.suffix and beside.exists() else config.base
    return config, Space.of(config, read(base, overrides), task)


def latency_calls(task: str) -> tuple[str, ...]:
    """Names of the calls that `training.latency` times for a task."""
    if task == "ranking":
        return tuple(f"list_{size}" for size in LIST_SIZES)
    return tuple(f"batch_{size}" for size in BATCH_SIZES)


def _tried(base: Mapping[str, Any], checked: TrainConfig, key: str, entry: Any) -> tuple[list[Any], list[str]]:
    """Put every bound, or every value of a list, into the base: the values as the schema gives them, and mistakes."""
    if mistake := _misplaced(checked, key):
        return [], [mistake]
    if isinstance(entry, Range):
        tries: Sequence[Any] = (entry.low, entry.high)
        types = _types(checked, key)
        if not types & {int, float}:
            return [], ["is not a number; give a list of values instead of a range"]
        if float not in types and not all(float(n).is_integer() for n in (*tries, entry.step or 1)):
            return [], [f"takes whole numbers, got low {entry.low:g}, high {entry.high:g}, step {entry.step}"]
    else:
        tries = entry
    values, mistakes = [], []
    for one in tries:
        try:
            values.append(_at(parse(_changed(base, {key: one}), checked.task), key))
        except ConfigError as error:
            mistakes.append(error.message.removeprefix(key).removeprefix(":").strip())
    if not mistakes and len({json.dumps(value) for value in values}) < len(values):
        mistakes.append(f"must be different values, got {list(tries)}")
    return values, mistakes


def _misplaced(checked: TrainConfig, key: str) -> str | None:
    """Say why `key` does not lead to a value of the configuration that may vary, where it does not."""
    if key in _FIXED:
        return f"cannot be searched: {_FIXED[key]}"
    found: Any = checked
    for part in key.split("."):
        known = type(found).model_fields if isinstance(found, BaseModel) else {}
        if part not in known:
            close = difflib.get_close_matches(part, known, n=1)
            return "is not a key of the base configuration" + (f"; did you mean {close[0]}?" if close else "")
        found = getattr(found, part)
    return "holds keys; name one of them" if isinstance(found, BaseModel) else None


def _types(checked: TrainConfig, key: str) -> set[Any]:
    """Types that the schema takes at `key`, of a union all."""
    *parents, last = key.split(".")
    holder: Any = checked
    for part in parents:
        holder = getattr(holder, part)
    return _leaves(type(holder).model_fields[last].annotation)


def _leaves(annotation: Any) -> set[Any]:
    if typing.get_origin(annotation) is Annotated:
        return _leaves(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in {typing.Union, UnionType}:
        return {leaf for part in typing.get_args(annotation) for leaf in _leaves(part)}
    return {annotation}


def _numbers(entry: Range, *, is_whole: bool) -> BaseDistribution:
    if is_whole:
        return IntDistribution(int(entry.low), int(entry.high), log=entry.log, step=int(entry.step or 1))
    return FloatDistribution(float(entry.low), float(entry.high), log=entry.log, step=entry.step)


def _rounded(value: Any, distribution: BaseDistribution) -> int | float:
    if isinstance(distribution, FloatDistribution):
        return min(max(float(f"{value:.{_N_DIGITS}g}"), distribution.low), distribution.high)
    return int(value)


def _holds(entry: Any, value: Any) -> bool:
    """Whether a number lies in a range, and on its steps."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not entry.low <= value <= entry.high:
        return False
    return entry.step is None or is_multiple(value - entry.low, entry.step)


def _label(value: Any) -> Value:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _at(config: TrainConfig, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _changed(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Give `base` with the values at dotted keys put in; `base` itself stays as it is."""
    changed: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in values.items():
        *parents, last = key.split(".")
        holder = changed
        for part in parents:
            holder[part] = holder = dict(holder.get(part) or {})
        holder[last] = value
    return changed

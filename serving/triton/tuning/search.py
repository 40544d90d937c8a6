"""The search itself, on whatever measures: coarse first, then around the best, then the finalists in turns.

Every stage is tried in random order, so that a machine that grows slower is no one's disadvantage. The default is
measured like every other scheduling, in the coarse stage and in each round of the finals.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.errors import RankyardError, RefusedError, UnavailableError
from serving.bench.bench import holds
from serving.triton.settings import Scheduling

DEFAULT = Scheduling()
MIN_GAIN = 1.02
"""Less than two per cent more is not worth a setting of its own."""

_N_FINALISTS = 3
_N_LEADERS = 2
_IDLE_STEPS = 2
"""Loads in a row that bring nothing more, after which a server is full."""

Figures = Mapping[str, Any]
"""What `serving.bench.record` says of one loop."""

Measure = Callable[[Scheduling, float], Figures]
"""Puts load on a server scheduled so: callers of a closed loop, or requests a second of an open one."""


@dataclass(frozen=True, slots=True)
class Space:
    """What is tried.

    loads: rising. arrangements: (instances, threads). delays_us, batch_sizes: the default's are tried without being
    named. max_delay_us: above which a delay alone would break the limit.
    """

    loads: Sequence[float]
    arrangements: Sequence[tuple[int, int]]
    delays_us: Sequence[int]
    batch_sizes: Sequence[tuple[int, ...]]
    max_delay_us: int


@dataclass(frozen=True, slots=True)
class Point:
    """One loop: how Triton was scheduled, the load, and what came of it."""

    scheduling: Scheduling
    load: float
    figures: Figures
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Final:
    """A finalist at its best load within the limit: medians over the rounds, and each round's throughput."""

    scheduling: Scheduling
    load: float
    throughput_per_s: float
    p50_ms: float
    p99_ms: float
    rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """best: the finalist of the highest median. default: None where it breaks the limit at every load of the finals."""

    best: Final
    default: Final | None
    finals: tuple[Final, ...]
    points: tuple[Point, ...]
    failures: Mapping[Scheduling, str]

    @property
    def gain(self) -> float | None:
        """The best's throughput over the default's: the median of the rounds' ratios; None without a default."""
        return None if self.default is None else statistics.median(_ratios(self.best, self.default))

    @property
    def beats_default(self) -> bool:
        """Whether the best answered more than the default in every round, and by more than noise."""
        if self.default is None or self.gain is None:
            return True
        return self.gain >= MIN_GAIN and min(_ratios(self.best, self.default)) > 1

    @property
    def chosen(self) -> Final:
        """What to serve with: the best, or the default where nothing beats it."""
        return self.best if self.beats_default or self.default is None else self.default


@dataclass(slots=True)
class Search:
    """A search that is under way. n_trials: schedulings in the coarse stages at most. n_rounds: of the finals."""

    measure: Measure
    space: Space
    n_trials: int
    n_rounds: int
    seed: int = 0
    say: Callable[[str], None] = lambda _: None
    points: dict[Scheduling, list[Point]] = field(default_factory=dict)
    failures: dict[Scheduling, str] = field(default_factory=dict)

    def run(self, earlier: Scheduling | None = None) -> Found:
        """Find the best; earlier: what an earlier search found. RefusedError where nothing holds the limit."""
        shuffle = random.Random(self.seed).shuffle  # noqa: S311 - an order, not a secret
        for stage in self._stages(earlier):
            left = [one for one in dict.fromkeys(stage) if one not in self.points and one not in self.failures]
            shuffle(left)
            for scheduling in left[: self.n_trials - len(self.points) - len(self.failures)]:
                self._climb(scheduling)
        finalists = self._leaders(_N_FINALISTS)
        if not finalists:
            raise RefusedError(self._nothing_holds())
        loads = self._final_loads(finalists)
        rounds: dict[tuple[Scheduling, float], list[Figures]] = {}
        entered = list(dict.fromkeys([DEFAULT, *finalists]))
        for number in range(self.n_rounds):
            shuffle(entered)
            for scheduling in [one for one in entered if one not in self.failures]:
                for load in loads:
                    point = Point(scheduling, load, self.measure(scheduling, load), is_final=True)
                    self.points[scheduling].append(point)
                    rounds.setdefault((scheduling, load), []).append(point.figures)
            self.say(f"finals: round {number + 1} of {self.n_rounds}")
        return self._judged(rounds)

    def _stages(self, earlier: Scheduling | None) -> Iterator[list[Scheduling]]:
        """Coarse, then around what has done best so far."""
        space = self.space
        yield [DEFAULT]
        yield [] if earlier is None else [earlier]
        yield [_changed(DEFAULT, n_instances=n, n_threads=threads) for n, threads in space.arrangements]
        yield [_changed(one, max_queue_delay_us=d) for one in self._leaders(_N_LEADERS) for d in space.delays_us]
        yield [_changed(one, preferred_batch_sizes=s) for one in self._leaders(1) for s in space.batch_sizes]
        for best in self._leaders(1):
            delay_us = best.max_queue_delay_us
            around = [delay_us // 2, min(delay_us * 2, space.max_delay_us)]
            near = {best.n_instances + step for step in (-1, 1)} - {0}
            yield [
                *(_changed(best, max_queue_delay_us=d) for d in around),
                *(_changed(best, n_instances=n) for n in sorted(near)),
            ]

    def _climb(self, scheduling: Scheduling) -> None:
        """Raise the load until the limit breaks, or nothing more is answered."""
        points: list[Point] = []
        best, n_idle = 0.0, 0
        try:
            for load in self.space.loads:
                points.append(Point(scheduling, load, self.measure(scheduling, load)))
                throughput = points[-1].figures["throughput_per_s"]
                n_idle = 0 if throughput > best * MIN_GAIN else n_idle + 1
                best = max(best, throughput)
                if not _is_held(points[-1]) or n_idle == _IDLE_STEPS:
                    break
        except UnavailableError:
            raise
        except RankyardError as error:  # such as more instances than there is memory for
            self.failures[scheduling] = error.message
            self.say(f"{described(scheduling)}: {error.message}")
            return
        self.points[scheduling] = points
        top = _top(points)
        found = "breaks the limit at every load" if top is None else f"{_said(top.figures)} at load {top.load:g}"
        self.say(f"{len(self.points)} of at most {self.n_trials}: {described(scheduling)}: {found}")

    def _leaders(self, n: int) -> list[Scheduling]:
        """The n best so far, best first."""
        tops = {one: top for one, points in self.points.items() if (top := _top(points)) is not None}
        ordered = sorted(tops, key=lambda one: -tops[one].figures["throughput_per_s"])
        return ordered[:n]

    def _final_loads(self, finalists: Sequence[Scheduling]) -> list[float]:
        """Every finalist's best load, and the next lower one: all finalists, and the default, are tried at each."""
        tops = [_top(self.points[one]) for one in dict.fromkeys([DEFAULT, *finalists]) if one in self.points]
        best = {top.load for top in tops if top is not None}
        lowest = list(self.space.loads).index(min(best))
        return sorted(best | {self.space.loads[max(lowest - 1, 0)]})

    def _judged(self, rounds: Mapping[tuple[Scheduling, float], Sequence[Figures]]) -> Found:
        finals: dict[Scheduling, Final] = {}
        for (scheduling, load), figures in rounds.items():
            if not holds({"within_limit": statistics.median(one["within_limit"] for one in figures)}):
                continue
            throughputs = tuple(float(one["throughput_per_s"]) for one in figures)
            final = Final(
                scheduling,
                load,
                statistics.median(throughputs),
                statistics.median(one["p50_ms"] for one in figures),
                statistics.median(one["p99_ms"] for one in figures),
                throughputs,
            )
            before = finals.get(scheduling)
            if before is None or before.throughput_per_s < final.throughput_per_s:
                finals[scheduling] = final
        if not finals:
            raise RefusedError(self._nothing_holds())
        ordered = sorted(finals.values(), key=lambda one: -one.throughput_per_s)
        points = tuple(point for all_ in self.points.values() for point in all_)
        return Found(ordered[0], finals.get(DEFAULT), tuple(ordered), points, dict(self.failures))

    def _nothing_holds(self) -> str:
        answered = [point.figures for points in self.points.values() for point in points]
        p99s_ms = [figures["p99_ms"] for figures in answered if figures["p99_ms"] is not None]
        if not p99s_ms:
            errors: Counter[str] = sum((Counter(figures["errors"]) for figures in answered), Counter())
            reasons = [*self.failures.values(), *(f"{n} x {kind}" for kind, n in errors.items())]
            return f"a scheduling must answer to be measured, none did: {', '.join(reasons) or 'nothing was sent'}"
        return (
            f"99 of 100 requests must be answered within the limit, under no scheduling were they at a load of "
            f"{self.space.loads[0]:g}; the least p99 was {min(p99s_ms):g} ms: raise --p99-ms or lower the load"
        )


def described(scheduling: Scheduling) -> str:
    """Name a scheduling in a few words."""
    sizes = ",".join(map(str, scheduling.preferred_batch_sizes))
    preferred = f", batches of {sizes}" if sizes else ""
    arrangement = f"{scheduling.n_instances} x {scheduling.n_threads} threads"
    return f"{arrangement}, delay {scheduling.max_queue_delay_us} us{preferred}"


def _changed(scheduling: Scheduling, **changes: Any) -> Scheduling:
    return scheduling.model_copy(update=changes)


def _is_held(point: Point) -> bool:
    return holds(dict(point.figures))


def _top(points: Sequence[Point]) -> Point | None:
    held = [point for point in points if _is_held(point)]
    return max(held, key=lambda point: point.figures["throughput_per_s"], default=None)


def _ratios(one: Final, other: Final) -> list[float]:
    """Divide round by round: both saw the same machine then."""
    return [mine / its if its else math.inf for mine, its in zip(one.rounds, other.rounds, strict=True)]


def _said(figures: Figures) -> str:
    return f"{figures['throughput_per_s']:.0f}/s, p99 {figures['p99_ms']:g} ms"

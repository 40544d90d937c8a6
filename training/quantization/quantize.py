"""The choice of an INT8 recipe by proof: each is made, answers the valid rows, and is kept only within its budget."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from models.batch import Arrays, Encoded, collate, n_rows, split
from models.manifest import Contents, Signature
from models.metrics import MAIN_METRIC
from models.model import Model
from models.session import OnnxSession
from registry.evaluation import RecipeTrial
from training.config import QuantizeConfig
from training.data.splits import Request
from training.evaluate import Answered, answer
from training.fit import Recorder
from training.latency import side_by_side
from training.quantization.quantizer import products, quantize
from training.quantization.ranges import Range, ranges
from training.quantization.recipes import LADDERS, RECIPES, Recipe, RecipeName

FLOAT32 = "float32"

_SEED = 0
_N_PROBED = 64
_MAX_ROWS_PROBED = 256  # lists of candidates have dozens of rows each, and every product is asked them all
_N_JOINED = 8
_TOLERANCE = 1e-4
_ALIKE = 1.03
_SPARED_ERROR = 0.5
_MAX_SPARED = 0.25

Metrics = Callable[[Sequence[Answered]], Mapping[str, float]]
"""Judges the answers to the valid rows: metric -> value."""


@dataclass(frozen=True)
class Source:
    """A float32 network to quantize: its file, how it is asked, some training requests, and its valid answers."""

    path: Path
    model: Model
    contents: Contents
    train: Sequence[Request]
    valid: Sequence[Request]
    answered: Sequence[Answered]
    metrics: Metrics


@dataclass(frozen=True)
class Chosen:
    """The recipe that is kept (or, beyond the budget, that loses least), its valid answers, and all that were tried."""

    trial: RecipeTrial
    answered: Sequence[Answered]
    is_kept: bool
    measure: str
    trials: tuple[RecipeTrial, ...]
    float32_latency_ms: Mapping[str, float]


def choose(
    source: Source, target: Path, settings: QuantizeConfig, recorder: Recorder, *, is_timed: bool = True
) -> Chosen:
    """Quantize by the recipes of `settings` and write the best one within the budget to `target`.

    With `recipes: default` the first recipe within the budget is the best, and the others are not tried. Otherwise it
    is the fastest on one core or the smallest; a recipe whose answers depend on the batch counts only where it is
    named. Nothing is written where none is within the budget. is_timed: time the default too.
    """
    is_ladder = settings.recipes == "default"
    with tempfile.TemporaryDirectory(prefix="rankyard-quantize-") as directory:
        sweep = _Sweep(source, Path(directory), settings, recorder)
        for name in LADDERS[settings.objective] if is_ladder else _named(settings):
            if sweep.attempt(name) and is_ladder:
                break
        latency_ms = sweep.latency_ms() if is_timed or not is_ladder else {}
        trials = [
            one.model_copy(update={"latency_ms": latency_ms.get(one.recipe, {})}) for one in sweep.trials.values()
        ]
        within = [one for one in trials if sweep.is_within(one)]
        if within:
            best = within[0] if is_ladder else _best(within, settings.objective)
            shutil.move(sweep.path(best.recipe), target)
        else:
            best = min(trials, key=lambda one: one.loss)
        return Chosen(
            trial=best,
            answered=sweep.answered[best.recipe],
            is_kept=bool(within),
            measure=sweep.measure,
            trials=tuple(trials),
            float32_latency_ms=latency_ms.get(FLOAT32, {}),
        )


def _named(settings: QuantizeConfig) -> Sequence[RecipeName]:
    return tuple(RECIPES) if isinstance(settings.recipes, str) else settings.recipes


def _best(trials: Sequence[RecipeTrial], objective: str) -> RecipeTrial:
    """The cheapest; of those that cost at most 3 % more than it, which a timing cannot tell apart, the most exact."""
    costs = [_cost(one, objective) for one in trials]
    near = [one for one, cost in zip(trials, costs, strict=True) if cost <= _ALIKE * min(costs)]
    return min(near, key=lambda one: one.error)


def _cost(trial: RecipeTrial, objective: str) -> float:
    """Bytes, or the geometric mean of what was timed on one core."""
    if objective == "size":
        return float(trial.size_bytes)
    return float(np.exp(np.mean([np.log(ms) for call, ms in trial.latency_ms.items() if call.startswith("one_core")])))


class _Sweep:
    """Recipes tried on one network, with what each gave."""

    def __init__(self, source: Source, directory: Path, settings: QuantizeConfig, recorder: Recorder) -> None:
        self._source = source
        self._directory = directory
        self._settings = settings
        self._recorder = recorder
        self._metrics = source.metrics(source.answered)
        self._measures = loss_measures(source.contents, self._metrics)
        self._products = products(onnx.load(str(source.path), load_external_data=False))
        self._ranges: Mapping[str, Range] | None = None
        self.trials: dict[str, RecipeTrial] = {}
        self.answered: dict[str, Sequence[Answered]] = {}

    @property
    def measure(self) -> str:
        """What the loss is of."""
        return self._measures[0] if len(self._measures) == 1 else f"the mean of {' and '.join(self._measures)}"

    def path(self, recipe: str) -> Path:
        """Where a recipe's model is."""
        return self._source.path if recipe == FLOAT32 else self._directory / f"{recipe}.onnx"

    def attempt(self, name: RecipeName) -> bool:
        """Make and measure a recipe; whether it is within the budget."""
        recipe = RECIPES[name]
        spared = () if recipe.spared is None else self._most_harmful(recipe)
        self._write(self.path(name), recipe, spared)
        session = OnnxSession(self.path(name), n_threads=0)
        source = self._source
        answered = answer(source.model, source.contents, session.run, source.valid)
        metrics = source.metrics(answered)
        losses = {metric: self._metrics[metric] - value for metric, value in metrics.items() if metric in self._metrics}
        trial = RecipeTrial(
            recipe=name,
            size_bytes=self.path(name).stat().st_size,
            loss=float(np.mean([losses[metric] for metric in self._measures])),
            losses=losses,
            error=relative_error(source.answered, answered),
            batch_effect=batch_effect(session, [one.encoded for one in answered], source.contents.signature),
            spared=spared,
        )
        self.trials[name], self.answered[name] = trial, answered
        self._recorder.say(
            f"INT8 by the recipe {name}: {trial.size_bytes / 1e6:.1f} MB, loses {trial.loss:+.4f} of {self.measure} on "
            f"valid, budget {self._settings.max_loss:g}"
        )
        return self.is_within(trial)

    def is_within(self, trial: RecipeTrial) -> bool:
        """Whether a recipe may be kept."""
        is_named = not isinstance(self._settings.recipes, str)
        return trial.loss <= self._settings.max_loss and (is_named or trial.batch_effect <= _TOLERANCE)

    def latency_ms(self) -> Mapping[str, Mapping[str, float]]:
        """Milliseconds of float32 and of every recipe tried, by cores and size of the batch."""
        paths = {name: self.path(name) for name in (FLOAT32, *self.trials)}
        return side_by_side(paths, [one.encoded for one in self._source.answered], self._source.contents.signature)

    def _write(self, path: Path, recipe: Recipe, spared: Sequence[str]) -> None:
        needs_ranges = recipe.activations == "static"
        quantize(self._source.path, path, recipe, ranges=self._calibrated() if needs_ranges else None, spared=spared)

    def _calibrated(self) -> Mapping[str, Range]:
        if self._ranges is None:
            inputs = sorted(set(self._products.values()))
            self._ranges = ranges(self._source.path, inputs, self._batches())
        return self._ranges

    def _batches(self) -> Iterator[Arrays]:
        source = self._source
        for i in np.random.default_rng(_SEED).permutation(len(source.train)).tolist():
            yield collate([source.model.encode(source.train[i])], source.contents.signature)

    def _most_harmful(self, recipe: Recipe) -> tuple[str, ...]:
        """Products that hold half of the squared error, each quantized alone; at most a quarter of all."""
        source = self._source
        requests: list[Request] = []
        n_asked = 0
        for i in np.random.default_rng(_SEED).permutation(len(source.valid))[:_N_PROBED].tolist():
            if n_asked < _MAX_ROWS_PROBED:
                requests.append(source.valid[i])
                n_asked += n_rows(source.model.encode(source.valid[i]), source.contents.signature)
        expected = answer(source.model, source.contents, OnnxSession(source.path, n_threads=0).run, requests)
        plain, path = replace(recipe, spared=None), self._directory / "probe.onnx"
        errors: dict[str, float] = {}
        for i, product in enumerate(self._products):
            self._recorder.progress("errors of single products", i, len(self._products))
            self._write(path, plain, [other for other in self._products if other != product])
            found = answer(source.model, source.contents, OnnxSession(path, n_threads=0).run, requests)
            errors[product] = relative_error(expected, found) ** 2
        self._recorder.progress("errors of single products", len(self._products), len(self._products))
        path.unlink(missing_ok=True)
        worst = sorted(errors, key=lambda product: -errors[product])
        shares = np.cumsum([errors[product] for product in worst]) / (sum(errors.values()) or 1.0)
        n_spared = min(int(np.searchsorted(shares, _SPARED_ERROR)) + 1, max(1, int(_MAX_SPARED * len(worst))))
        return tuple(worst[:n_spared])


def loss_measures(contents: Contents, metrics: Mapping[str, float]) -> tuple[str, ...]:
    """Metrics whose mean is the loss measure: the family's main one, and a tagger's `intent_accuracy` where joint."""
    main = MAIN_METRIC[contents.family]
    return (main, "intent_accuracy") if contents.family == "tagging" and "intent_accuracy" in metrics else (main,)


def relative_error(expected: Sequence[Answered], found: Sequence[Answered]) -> float:
    """Root mean square of the differences of all outputs, each as a share of the output's standard deviation."""
    shares = []
    for name in expected[0].outputs if expected else ():
        wanted = [_unpadded(one.outputs[name], one.encoded.length) for one in expected]
        ours = [_unpadded(one.outputs[name], one.encoded.length) for one in found]
        wanted_N, ours_N = (np.concatenate([array.ravel() for array in arrays]) for arrays in (wanted, ours))
        shares.append(float(np.mean((wanted_N - ours_N) ** 2) / max(float(wanted_N.var()), 1e-12)))
    return float(np.sqrt(np.mean(shares))) if shares else 0.0


def batch_effect(session: OnnxSession, encoded: Sequence[Encoded], signature: Signature) -> float:
    """Largest difference of an output between eight requests, from the shortest to the longest, together and alone."""
    by_length = sorted(encoded, key=lambda one: one.length)
    places = np.unique(np.linspace(0, len(by_length) - 1, num=_N_JOINED, dtype=np.int64))
    together = [by_length[i] for i in places]
    effect = 0.0
    for one, outputs in zip(
        together, split(session.run(collate(together, signature)), together, signature), strict=True
    ):
        alone = split(session.run(collate([one], signature)), [one], signature)[0]
        for name, array in alone.items():
            difference = _unpadded(array, one.length) - _unpadded(outputs[name], one.length)
            effect = max(effect, float(np.abs(difference).max(initial=0.0)))
    return effect


def _unpadded(output: NDArray[np.generic], length: int) -> NDArray[np.float64]:
    """An output without the positions of padding: [T, K] is one of tokens, padded to its batch's longest text."""
    array = np.asarray(output, dtype=np.float64)
    return array[..., :length, :] if array.ndim >= 2 else array

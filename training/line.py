"""The line, once: read -> fit -> export -> quantize -> evaluate -> bundle -> register, the same for every family."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ParityError
from models.manifest import FORMAT, Contents, FamilyName, Manifest, SplitDigest
from models.metrics import MAIN_METRIC
from models.model import Model, open_model
from models.session import OnnxSession
from registry import golden
from registry.bundle import MODEL, MODEL_INT8, VARIANTS, Bundle, draft, seal
from registry.evaluation import Parity, Quantization, Report, Variant, VariantName
from registry.references import check_name
from registry.tracking import Tracking
from training.config import QuantizeConfig, TrainConfig, parse
from training.data.splits import RankingRows, Splits
from training.evaluate import Answered, AnyRows, Evaluation, answer, evaluate, judge
from training.fit import Checkpoint, Fitted, Recorder
from training.latency import latency
from training.parity import compare
from training.pictures import latency_bars, pictures
from training.quantize import quantize


def family_of(task: FamilyName) -> Any:
    """Give the module with the family's `read`, `read_file` and `fit`; imported on use, as each brings its library."""
    return importlib.import_module(f"training.{task}")


_N_GOLDEN = 8
_GOLDEN_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Order:
    """What to train: a checked configuration, a data directory, and the name to register under."""

    config: TrainConfig
    data: Path
    name: str
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Trained:
    """A registered version and its sealed bundle; metrics are those of the variant that will be served."""

    name: str
    version: str
    run_id: str
    bundle: Bundle
    report: Report
    seconds: float

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Split -> metric -> value."""
        return {split: quality.metrics for split, quality in self.report.served.quality.items()}

    def summary(self) -> str:
        """A few lines for the terminal."""
        split, quality = list(self.report.served.quality.items())[-1]
        figures = ", ".join(f"{metric} {value:.4f}" for metric, value in quality.metrics.items())
        size_mb = self.report.served.size_bytes / 1e6
        return (
            f"{self.name}/{self.version} in {self.seconds:.0f} s: {split} ({quality.n} examples) {figures}\n"
            f"served as {self.report.served_variant}, {size_mb:.1f} MB; export differs from its source by at most "
            f"{self.report.parity.largest_difference:.1e}"
        )


def run(order: Order, tracking: Tracking, terminal: Recorder) -> Trained:
    """Train and register. Nothing is registered, and no bundle stays, unless every step before held."""
    started = time.perf_counter()
    check_name(order.name)
    config, family = order.config, family_of(order.config.task)
    splits: Splits[Any] = family.read(order.data, config)
    for note in splits.notes:
        terminal.say(f"note: {note}")
    digests = _digests(splits)
    settings = config.model_dump(mode="json")
    fingerprint = _sha256({"config": settings, "data": {split: one.sha256 for split, one in digests.items()}})
    with (
        tracking.workspace.lock(f"train-{order.name}"),
        tracking.training(config.task, order.name, resume=fingerprint if order.resume else None) as record,
    ):
        record.tags({"rankyard.fingerprint": fingerprint})
        record.parameters(settings)
        record.datasets(order.name, digests)
        recorder = _Both(record, terminal)
        checkpoint = Checkpoint(tracking.workspace.checkpoints / order.name, fingerprint, order.resume)
        fitted: Fitted = family.fit(config, splits, recorder, checkpoint)
        record.parameters({f"fit.{name}": value for name, value in fitted.parameters().items()})
        with draft(tracking.workspace.bundles) as directory:
            contents = fitted.write(directory)
            made = _Export(directory, contents, config, splits, recorder)
            report, evaluations = made.prove(fitted)
            made.write_golden()
            manifest = Manifest(
                **contents.model_dump(),
                format=FORMAT,
                name=order.name,
                created=datetime.now(UTC),
                config=settings,
                config_sha256=_sha256(settings),
                data=digests,
                code_version=metadata.version("rankyard"),
                tolerance=_GOLDEN_TOLERANCE,
                files={},
            )
            bundle = seal(directory, manifest, tracking.workspace.bundles)
        for split, evaluation in evaluations.items():
            for name, figure in pictures(splits.named()[split], evaluation).items():
                record.figure(figure, f"{split}/{name}")
        record.figure(latency_bars({name: variant.latency for name, variant in report.variants.items()}), "latency")
        version = tracking.register(bundle, record)
    return Trained(order.name, version, record.id, bundle, report, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A stored model's metrics and intervals on a file's examples."""

    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    notes: tuple[str, ...]


def evaluate_file(bundle: Bundle, file: Path) -> Evaluated:
    """Measure the served variant of a bundle on one labelled file."""
    config = parse(bundle.manifest.config, bundle.manifest.family)
    rows = family_of(config.task).read_file(file, config)
    model = open_model(bundle.path, bundle.manifest)
    session = OnnxSession(bundle.model_file(), n_threads=0)
    measured = evaluate(model, bundle.manifest, session.run, rows, config=config.evaluate, seed=config.training.seed)
    quality = measured.quality
    return Evaluated(quality.n, quality.metrics, quality.intervals, measured.notes)


class _Export:
    """A draft's files against the model they came from: parity, INT8 within its budget, quality, size, speed."""

    def __init__(
        self, directory: Path, contents: Contents, config: TrainConfig, splits: Splits[Any], recorder: Recorder
    ) -> None:
        self.contents = contents
        self.model: Model = open_model(directory, contents)
        self._directory = directory
        self._config = config
        self._splits = splits
        self._recorder = recorder
        self._rows: dict[str, AnyRows] = {name: rows for name, rows in splits.named().items() if name != "train"}
        self._train_counts = _label_counts(splits.train)

    def prove(self, fitted: Fitted) -> tuple[Report, dict[str, Evaluation]]:
        """Give the report, and the served variant's evaluation of each split; write both into the draft."""
        valid = self._answer("float32", self._splits.valid)
        parity = self._parity(fitted, valid)
        evaluations: dict[VariantName, dict[str, Evaluation]] = {"float32": self._evaluate("float32", valid)}
        quantization = None
        settings: QuantizeConfig | None = getattr(self._config, "quantize", None)
        if settings is not None and settings.enabled:
            quantization, evaluations["int8"] = self._quantize(settings, valid, evaluations["float32"]["valid"])
            if not quantization.kept:
                del evaluations["int8"]
        served: VariantName = "int8" if "int8" in evaluations else "float32"
        report = Report(
            family=self.contents.family,
            main_metric=self._main_metric,
            served_variant=served,
            variants={name: self._variant(name, its) for name, its in evaluations.items()},
            parity=parity,
            quantization=quantization,
        )
        report.save(self._directory)
        list(evaluations[served].values())[-1].predictions.save(self._directory)
        for evaluation in evaluations[served].values():
            for note in evaluation.notes:
                self._recorder.say(f"note: {note}")
        return report, evaluations[served]

    def write_golden(self) -> None:
        """Write golden.json: the shortest, the longest and some other valid examples, through every variant."""
        encoded = [(request, self.model.encode(request)) for request in self._splits.valid.requests()]
        by_length = sorted(encoded, key=lambda pair: pair[1].length)
        chosen = np.unique(np.linspace(0, len(by_length) - 1, num=_N_GOLDEN, dtype=np.int64))
        sessions = {
            name: OnnxSession(self._directory / file).run
            for name, file in VARIANTS.items()
            if (self._directory / file).exists()
        }
        golden.write(self._directory, self.contents.signature, [by_length[i] for i in chosen], sessions)

    @property
    def _main_metric(self) -> str:
        return MAIN_METRIC[self.contents.family]

    def _session(self, variant: VariantName, n_threads: int) -> OnnxSession:
        return OnnxSession(self._directory / VARIANTS[variant], n_threads=n_threads)

    def _answer(self, variant: VariantName, rows: AnyRows) -> list[Answered]:
        return answer(self.model, self.contents, self._session(variant, 0).run, rows.requests())

    def _parity(self, fitted: Fitted, valid: list[Answered]) -> Parity:
        """Compare ONNX with its source on valid; ParityError beyond the configured tolerance."""
        bounds = self._config.export
        parity = compare(
            self.model,
            self.contents,
            self._splits.valid.requests(),
            fitted.outputs([one.encoded for one in valid]),
            valid,
            tolerance=bounds.tolerance,
        )
        if not parity.holds(bounds.tolerance, bounds.max_changed_decisions):
            raise ParityError(
                f"the ONNX export must answer as its source to {bounds.tolerance:g} with at most "
                f"{bounds.max_changed_decisions} changed decisions, got {parity.largest_difference:.3g} and "
                f"{parity.n_changed_decisions} of {parity.n_examples}; nothing was registered"
            )
        return parity

    def _quantize(
        self, settings: QuantizeConfig, float32: list[Answered], reference: Evaluation
    ) -> tuple[Quantization, dict[str, Evaluation]]:
        """Make INT8 and weigh its loss on valid; beyond the budget its file is removed, and said so."""
        quantize(self._directory / MODEL, self._directory / MODEL_INT8)
        valid = self._answer("int8", self._splits.valid)
        evaluations = self._evaluate("int8", valid)
        before, after = (one.quality.metrics[self._main_metric] for one in (reference, evaluations["valid"]))
        kept = before - after <= settings.max_loss
        parity = compare(
            self.model,
            self.contents,
            self._splits.valid.requests(),
            [one.outputs for one in float32],
            valid,
            tolerance=self._config.export.tolerance,
        )
        if not kept:
            (self._directory / MODEL_INT8).unlink()
            self._recorder.say(
                f"INT8 loses {before - after:.4f} of {self._main_metric} on valid, above its budget of "
                f"{settings.max_loss:g}: float32 is served"
            )
        return Quantization(loss=before - after, max_loss=settings.max_loss, kept=kept, parity=parity), evaluations

    def _evaluate(self, variant: VariantName, valid: list[Answered]) -> dict[str, Evaluation]:
        evaluations: dict[str, Evaluation] = {}
        for split, rows in self._rows.items():
            self._recorder.progress(f"evaluate {variant}", len(evaluations), len(self._rows))
            evaluations[split] = judge(
                self.model,
                self.contents,
                rows,
                valid if split == "valid" else self._answer(variant, rows),
                config=self._config.evaluate,
                seed=self._config.training.seed,
                train_counts=self._train_counts,
            )
        self._recorder.progress(f"evaluate {variant}", len(self._rows), len(self._rows))
        return evaluations

    def _variant(self, name: VariantName, evaluations: Mapping[str, Evaluation]) -> Variant:
        return Variant(
            quality={split: evaluation.quality for split, evaluation in evaluations.items()},
            latency=latency(
                self.model,
                self.contents,
                self._session(name, 1).run,
                list(self._rows.values())[-1],
                seed=self._config.training.seed,
            ),
            size_bytes=(self._directory / VARIANTS[name]).stat().st_size,
        )


class _Both:
    """A recorder that tells the run and the person."""

    def __init__(self, record: Recorder, terminal: Recorder) -> None:
        self._recorders = (record, terminal)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for recorder in self._recorders:
            recorder.metrics(values, step)

    def progress(self, stage: str, done: int, total: int) -> None:
        for recorder in self._recorders:
            recorder.progress(stage, done, total)

    def say(self, sentence: str) -> None:
        for recorder in self._recorders:
            recorder.say(sentence)


def _label_counts(train: AnyRows) -> Mapping[str, int] | None:
    if isinstance(train, RankingRows) or train.labels is None:
        return None
    return Counter(train.labels)


def _digests(splits: Splits[Any]) -> dict[str, SplitDigest]:
    return {
        split: SplitDigest(file=rows.file, rows=len(rows), sha256=rows.sha256) for split, rows in splits.named().items()
    }


def _sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

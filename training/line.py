"""The line, once: read -> fit -> export -> quantize -> evaluate -> bundle -> register, the same for every family."""

from __future__ import annotations

import hashlib
import importlib
import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from models.manifest import FORMAT, FamilyName, Manifest, SplitDigest, TeacherOrigin
from models.model import open_model
from models.session import OnnxSession
from registry.bundle import Bundle, draft, seal
from registry.evaluation import Report
from registry.references import check_name
from registry.tracking import FINGERPRINT, Tracking
from training.checks.report import PAGE, report_on
from training.config import TrainConfig, parse
from training.data.splits import Splits
from training.data.unlabelled import read_unlabelled
from training.evaluate import evaluate
from training.fit import Checkpoint, Fitted, Recorder
from training.pictures import latency_bars, pictures, propensity_curve
from training.proof import FP16_MARGIN, Proof
from training.quantization import report as recipes


def family_of(task: FamilyName) -> Any:
    """Give the module with the family's `read`, `read_file` and `fit`; imported on use, as each brings its library."""
    return importlib.import_module(f"training.{task}")


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
        split = self.report.known_by
        quality = self.report.served.quality[split]
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
    family, splits = family_of(order.config.task), read(order)
    config, teachers = with_teachers(order.config, tracking)
    digests = _digests(splits)
    settings = order.config.model_dump(mode="json")
    fingerprint = _sha256(
        {
            "config": settings,
            "data": {split: one.sha256 for split, one in digests.items()},
            **({"teacher": [one.digest for one in teachers]} if teachers else {}),
        }
    )
    with (
        tracking.workspace.lock(f"train-{order.name}"),
        tracking.training(config.task, order.name, resume=fingerprint if order.resume else None) as record,
    ):
        record.tags({FINGERPRINT: fingerprint})
        record.parameters(settings)
        record.datasets(order.name, digests)
        found = report_on(splits, order.config)
        for sentence in found.said(f"{PAGE} of the run"):
            terminal.say(sentence)
        record.text(found.html(), PAGE)
        recorder = _Told(record, terminal)
        checkpoint = Checkpoint(tracking.workspace.checkpoints / order.name, fingerprint, order.resume)
        with _engine(order, config, tracking):
            fitted: Fitted = family.fit(config, splits, recorder, checkpoint)
        record.parameters({f"fit.{name}": value for name, value in fitted.parameters().items()})
        with draft(tracking.workspace.bundles) as directory:
            contents = fitted.write(directory)
            report, evaluations = Proof(directory, contents, config, splits, recorder).run(fitted)
            manifest = Manifest(
                **contents.model_dump(),
                format=FORMAT,
                name=order.name,
                created=datetime.now(UTC),
                config=settings,
                config_sha256=_sha256(settings),
                data=digests,
                code_version=metadata.version("rankyard"),
                teacher=teachers[0] if len(teachers) == 1 else teachers or None,
                tolerance=_GOLDEN_TOLERANCE,
                int8_recipe=report.int8_recipe,
                fp16_tolerance=None if report.fp16 is None else FP16_MARGIN * report.fp16.largest_difference,
                files={},
            )
            bundle = seal(directory, manifest, tracking.workspace.bundles)
        for split, evaluation in evaluations.items():
            for name, figure in pictures(splits.named()[split], evaluation).items():
                record.figure(figure, f"{split}/{name}")
        record.figure(latency_bars({name: variant.latency for name, variant in report.variants.items()}), "latency")
        if contents.propensities is not None:
            record.figure(propensity_curve(contents.propensities), "propensities")
        if table := recipes.table(report):
            record.text(table, "int8_recipes.md")
        if (drawn := recipes.picture(report)) is not None:
            record.figure(drawn, "int8_recipes")
        version = tracking.register(bundle, record)
        checkpoint.clear()
        trained = Trained(order.name, version, record.id, bundle, report, time.perf_counter() - started)
        record.describe(trained.summary())
    return trained


def follow(order: Order, tracking: Tracking) -> None:
    """Train beside the process that runs the line, as `training.processes` has it; record and keep nothing."""
    splits = read(order)
    config, _ = with_teachers(order.config, tracking)
    with tempfile.TemporaryDirectory() as nowhere, _engine(order, config, tracking):
        family_of(config.task).fit(config, splits, _Told(), Checkpoint(Path(nowhere), ""))


def read(order: Order) -> Splits[Any]:
    """Read the rows of every split, and the unlabelled texts that a student's configuration names."""
    splits: Splits[Any] = family_of(order.config.task).read(order.data, order.config)
    if (unlabelled := getattr(order.config, "unlabelled", None)) is not None:
        splits = replace(splits, unlabelled=read_unlabelled(order.data / unlabelled))
    return splits


def _engine(order: Order, config: TrainConfig, tracking: Tracking) -> AbstractContextManager[None]:
    """The processes that `training.engine` asks for, for as long as the fit takes."""
    if getattr(config.training, "engine", "local") != "torchrun":
        return nullcontext()
    # PyTorch takes seconds to import, and only networks are trained so.
    from training.processes import processes

    told = {
        "config": config.model_dump(mode="json"),
        "data": str(order.data.absolute()),
        "name": order.name,
        "workspace": str(tracking.workspace.root),
    }
    return processes(getattr(config.training, "n_processes", 1), told)


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


class _Told:
    """A recorder that tells all of some others: the run and the person."""

    def __init__(self, *recorders: Recorder) -> None:
        self._recorders = recorders

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for recorder in self._recorders:
            recorder.metrics(values, step)

    def progress(self, stage: str, done: int, total: int) -> None:
        for recorder in self._recorders:
            recorder.progress(stage, done, total)

    def say(self, sentence: str) -> None:
        for recorder in self._recorders:
            recorder.say(sentence)


def with_teachers(config: TrainConfig, tracking: Tracking) -> tuple[TrainConfig, tuple[TeacherOrigin, ...]]:
    """Fetch the teachers that a student's configuration names: each REF becomes the directory of its bundle."""
    refs: tuple[str, ...] = getattr(config, "teacher", ())
    bundles = [tracking.resolve(ref) for ref in refs]
    origins = tuple(
        TeacherOrigin(requested=ref, digest=bundle.digest) for ref, bundle in zip(refs, bundles, strict=True)
    )
    if not origins:
        return config, ()
    return config.model_copy(update={"teacher": tuple(str(bundle.path) for bundle in bundles)}), origins


def _digests(splits: Splits[Any]) -> dict[str, SplitDigest]:
    return {
        split: SplitDigest(file=rows.file, rows=len(rows), sha256=rows.sha256)
        for split, rows in splits.sources().items()
    }


def _sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

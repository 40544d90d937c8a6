"""Students against their teachers: what is lost, how much faster they answer, how small they are.

python -m experiments.distillation.run --data DIR [STUDY]... [--workspace DIR] [--teacher REF]

A teacher that the workspace has under its name is used, else it is trained first. Both answer the test split, in
process, by the variant that would be served, on one thread and in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments import command
from experiments.report import Row, mean_interval, save
from models.batch import collate, split
from models.bootstrap import paired_difference
from models.model import open_model
from models.session import OnnxSession
from registry.bundle import Bundle, open_bundle
from registry.predictions import Predictions
from registry.tracking import Tracking
from registry.workspace import Workspace
from training.config import parse
from training.line import family_of

HERE = Path(__file__).parent
BATCH_SIZES = (1, 8, 32)
N_TEXTS = 512
N_TURNS = 5
COMMAND = "python -m experiments.distillation.run --data DIR"


def main() -> None:
    """Run the studies that are named, or all, and draw the picture of all that have a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY")
    parser.add_argument("--data", type=Path, required=True, help="holds the folders that config.yaml names")
    parser.add_argument("--workspace", type=Path, default=Path(".rankyard-distillation"))
    parser.add_argument("--teacher", metavar="REF", help="of one study alone: a teacher that was trained before")
    options = parser.parse_args()
    studies = yaml.safe_load((HERE / "config.yaml").read_text())
    tracking = Tracking(Workspace(options.workspace.absolute()))
    for name in options.studies or studies:
        study(name, studies[name], options.data / studies[name]["data"], tracking, options.teacher)
    with tracking.start("studies", "distillation") as run:
        figure = picture(studies)
        run.figure(figure, "distillation")
        figure.savefig(HERE / "results" / "distillation.png", dpi=120, bbox_inches="tight")


def study(name: str, settings: dict[str, Any], data: Path, tracking: Tracking, ref: str | None) -> None:
    """Train what is missing, compare, and save the result."""
    task, metric = settings["task"], settings["metric"]
    if ref:
        teacher = tracking.resolve(ref)
    else:
        its = settings["teacher"]
        teacher = command.trained(task, its["configuration"], data, its["name"], tracking.workspace.root)
    # A student decides on scope where its teacher does: what is called out of scope is lost to accuracy_in_scope.
    alike = ["scope=null"] if task == "intent" and teacher.manifest.scope is None else []
    students, seconds = [], []
    for seed in settings["student"]["seeds"]:
        overrides = [f"training.seed={seed}", f"teacher={teacher.path}", *alike]
        student = settings["student"]["configuration"]
        answer = command.train(task, student, data, f"{name}-student", tracking.workspace.root, overrides)
        students.append(open_bundle(Path(answer["bundle"])))
        seconds.append(answer["seconds"])
    losses = [loss(teacher, student, metric) for student in students]
    lost = mean_interval([one[0] for one in losses], [one[1:] for one in losses], independent=False)
    config = parse(teacher.manifest.config, task)
    texts = list(family_of(task).read(data, config).test.requests())
    speeds = throughput({"teacher": teacher, "student": students[0]}, texts)
    ratio = speeds["student"]["batch_32"]["texts_per_s"] / speeds["teacher"]["batch_32"]["texts_per_s"]
    size_mb = max(student.model_file().stat().st_size for student in students) / 1e6
    targets, seeds = settings["targets"], settings["student"]["seeds"]
    common = {
        "data": settings["data"],
        "configuration": settings["student"]["configuration"],
        "seeds": seeds,
        "seconds": sum(seconds) / len(seconds),
        "served_as": f"{students[0].variant}, {size_mb:.1f} MB",
    }
    rows = [
        Row(**common, metric=f"{metric} lost to its teacher", value=lost[0], low=lost[1], high=lost[2],
            target=targets["loss"], at_most=True, published=settings["published"]),
        Row(**common, metric="times its teacher's speed, one core, batches of 32", value=ratio, low=ratio, high=ratio,
            target=targets["speed"]),
        Row(**common, metric="MB", value=size_mb, low=size_mb, high=size_mb, target=targets["size_mb"], at_most=True),
    ]  # fmt: skip
    save(
        HERE / "results" / f"{name}.json",
        rows,
        f"{COMMAND} {name}",
        metric=metric,
        teacher={"size_mb": teacher.model_file().stat().st_size / 1e6, "test": command.quality_on_test(teacher)},
        students=[
            {"seed": seed, "seconds": took, "test": command.quality_on_test(student), "lost": one}
            for seed, took, student, one in zip(seeds, seconds, students, losses, strict=True)
        ],
        throughput=speeds,
    )
    for row in rows:
        print(f"{row.data} {row.metric}: {row.value:.4f} [{row.low:.4f}, {row.high:.4f}], target {row.target}")


def loss(teacher: Bundle, student: Bundle, metric: str) -> tuple[float, float, float]:
    """How much the student is below the teacher on the same test examples, with its paired bootstrap interval."""
    theirs, mine = Predictions.load(teacher.path), Predictions.load(student.path)
    rows, others = theirs.paired(mine)
    return paired_difference(theirs.ratios[metric].take(rows), mine.ratios[metric].take(others))


def throughput(bundles: dict[str, Bundle], texts: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Texts a second from text to answer, and microseconds a text of its three parts: medians of turns."""
    chosen = np.random.default_rng(0).choice(len(texts), size=min(N_TEXTS, len(texts)), replace=False)
    drawn = [texts[index] for index in chosen]
    turns: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for _ in range(N_TURNS):
        for size in BATCH_SIZES:
            for name, bundle in bundles.items():
                turns.setdefault((name, size), []).append(turn(bundle, drawn, size))
    speeds: dict[str, dict[str, dict[str, float]]] = {name: {} for name in bundles}
    for (name, size), found in turns.items():
        encoding, running, decoding = (statistics.median(part) for part in zip(*found, strict=True))
        total = statistics.median(sum(parts) for parts in found)
        speeds[name][f"batch_{size}"] = {
            "texts_per_s": 1e6 / total,
            "texts_per_s_without_tokenizing": 1e6 / (total - encoding),
            "encode_us": encoding,
            "model_us": running,
            "decode_us": decoding,
        }
    return speeds


def turn(bundle: Bundle, texts: Sequence[str], batch_size: int) -> tuple[float, float, float]:
    """Microseconds a text, on one thread: encoding, running the model, decoding."""
    model, session = open_model(bundle.path, bundle.manifest), OnnxSession(bundle.model_file())
    signature = bundle.manifest.signature
    parts = np.zeros(3)
    for begin in (0, *range(0, len(texts), batch_size)):
        if begin == 0:
            parts[:] = 0  # the first batch is asked twice: once to warm up
        batch = texts[begin : begin + batch_size]
        moments = [time.perf_counter()]
        encoded = [model.encode(text) for text in batch]
        arrays = collate(encoded, signature)
        moments.append(time.perf_counter())
        outputs = session.run(arrays)
        moments.append(time.perf_counter())
        model.decode_batch(batch, encoded, split(outputs, encoded, signature))
        moments.append(time.perf_counter())
        parts += np.diff(moments)
    encoding, running, decoding = (1e6 * parts / len(texts)).tolist()
    return encoding, running, decoding


def picture(studies: dict[str, Any]) -> Any:
    """Quality over texts a second, teacher and students of each study joined by a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = {name: HERE / "results" / f"{name}.json" for name in studies}
    found = {name: path for name, path in found.items() if path.exists()}
    figure, axes = pyplot.subplots(1, len(found), figsize=(4.5 * len(found), 3.6), squeeze=False)
    for axis, (name, path) in zip(axes[0], found.items(), strict=True):
        result = json.loads(path.read_text())
        metric, speeds = result["metric"], result["throughput"]
        x = [speeds[who]["batch_32"]["texts_per_s"] for who in ("teacher", "student")]
        students = [one["test"][metric] for one in result["students"]]
        floor = result["teacher"]["test"][metric] - studies[name]["targets"]["loss"]
        axis.plot(x, [result["teacher"]["test"][metric], statistics.mean(students)], color="0.7", zorder=0)
        axis.scatter(
            x[:1], [result["teacher"]["test"][metric]], label=f"teacher, {result['teacher']['size_mb']:.0f} MB"
        )
        axis.scatter(x[1:] * len(students), students, label=f"students, {result['rows'][-1]['value']:.1f} MB")
        axis.axhline(floor, color="0.5", linewidth=0.8, linestyle="--", label="loss allowed")
        axis.axvline(
            x[0] * studies[name]["targets"]["speed"], color="0.5", linewidth=0.8, linestyle=":", label="speed wanted"
        )
        axis.set(title=name, xlabel="texts a second, one core, batches of 32", ylabel=f"{metric}, test")
        axis.set_xlim(left=0)
        axis.legend(fontsize=7)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()

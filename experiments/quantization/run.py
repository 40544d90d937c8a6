"""What every INT8 recipe costs and gives on a trained bundle, beside ONNX Runtime's own and the tool `optimum`.

python -m experiments.quantization.run --data DIR STUDY=BUNDLE...    writes results/STUDY.json and .png
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.environment import overlay
from experiments.report import Row, save
from models.bootstrap import paired_difference
from models.model import open_model
from models.session import OnnxSession
from registry.bundle import MODEL, open_bundle
from registry.evaluation import Quantization, RecipeTrial, Report
from training.config import EvaluateConfig, QuantizeConfig, parse
from training.encoder import CONFIG, resolve
from training.evaluate import Evaluation, answer, judge
from training.latency import side_by_side
from training.line import family_of
from training.quantization import report as recipe_report
from training.quantization.quantize import FLOAT32, Source, batch_effect, choose
from training.quantization.quantizer import quantize
from training.quantization.recipes import RECIPES
from training.terminal import Terminal

HERE = Path(__file__).parent
MAX_LOSS = 0.003


def main() -> None:
    """Measure the bundles that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="STUDY=BUNDLE")
    parser.add_argument("--data", type=Path, required=True, help="holds the folders that config.yaml names")
    options = parser.parse_args()
    studies = yaml.safe_load((HERE / "config.yaml").read_text())
    for name, _, bundle in (one.partition("=") for one in options.bundles):
        study = Study(Path(bundle), options.data / studies[name]["data"])
        with tempfile.TemporaryDirectory(prefix="rankyard-study-") as directory:
            files = study.files(Path(directory), studies["optimum"])
            recipes, report = study.recipes(Path(directory))
            compared = study.compared(files)
        figure = recipe_report.picture(report)
        if figure is not None:
            figure.savefig(HERE / "results" / f"{name}.png", bbox_inches="tight")
        rows = [study.row(name, metric, compared) for metric in studies[name]["metrics"]]
        figures = {which: one["figures"] for which, one in compared.items()}
        command = f"python -m experiments.quantization.run --data DIR {name}=BUNDLE"
        save(HERE / "results" / f"{name}.json", rows, command, compared=figures, recipes=recipes)
        print(recipe_report.table(report))
        for which, one in figures.items():
            print(which, json.dumps(one))


class Study:
    """A trained bundle with its data; recipes are chosen on valid, the test split is read for the comparison alone."""

    def __init__(self, bundle: Path, data: Path) -> None:
        self._bundle = open_bundle(bundle)
        self._config: Any = parse(self._bundle.manifest.config, self._bundle.manifest.family)
        self._splits = family_of(self._config.task).read(data, self._config)
        self._model = open_model(self._bundle.path, self._bundle.manifest)
        self._answered = {FLOAT32: self._answer(self._bundle.path / MODEL, self._splits.valid)}

    def files(self, directory: Path, requirements: Sequence[str]) -> dict[str, Path]:
        """Make what is compared: float32, what a training would keep, ONNX Runtime's own, and the tool's."""
        model = self._bundle.path / MODEL
        files = {name: directory / f"{name}.onnx" for name in ("rankyard", "onnxruntime", "optimum")}
        begin = time.perf_counter()
        chosen = choose(self._source(), files["rankyard"], QuantizeConfig(max_loss=MAX_LOSS), Terminal())
        self._seconds = time.perf_counter() - begin
        print(f"chosen in {self._seconds:.1f} s: {chosen.trial.recipe}, kept: {chosen.is_kept}")
        quantize(model, files["onnxruntime"], RECIPES["onnxruntime_dynamic"])
        python = overlay(directory / "environment", requirements)
        encoder = resolve(self._config.model.encoder).directory
        script = [str(HERE / "optimum_quantize.py"), str(model), str(encoder / CONFIG), str(files["optimum"])]
        subprocess.run([str(python), *script], check=True)
        return {FLOAT32: model, **{name: path for name, path in files.items() if path.exists()}}

    def recipes(self, directory: Path) -> tuple[list[dict[str, Any]], Report]:
        """Measure every recipe on valid; the report is the bundle's with these trials."""
        settings = QuantizeConfig(max_loss=MAX_LOSS, recipes="all")
        chosen = choose(self._source(), directory / "best.onnx", settings, Terminal())
        report = Report.load(self._bundle.path)
        quantization = Quantization(
            loss=chosen.trial.loss,
            max_loss=MAX_LOSS,
            kept=chosen.is_kept,
            parity=report.parity,
            measure=chosen.measure,
            recipe=chosen.trial.recipe,
            trials=chosen.trials,
            float32_latency_ms=dict(chosen.float32_latency_ms),
        )
        return [_rounded(one) for one in chosen.trials], report.model_copy(update={"quantization": quantization})

    def compared(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Quality on valid and test, size, speed and dependence on the batch of each file."""
        encoded = [one.encoded for one in self._answered[FLOAT32]]
        signature = self._bundle.manifest.signature
        latency_ms = side_by_side(files, encoded, signature)
        compared = {}
        for name, path in files.items():
            judged = {
                split: self._judge(rows, self._answer(path, rows))
                for split, rows in (("valid", self._splits.valid), ("test", self._splits.test))
            }
            figures = {
                "size_bytes": path.stat().st_size,
                "batch_effect": batch_effect(OnnxSession(path), encoded, signature),
                "latency_ms": latency_ms[name],
                **{split: one.quality.metrics for split, one in judged.items()},
            }
            compared[name] = {"figures": figures, "test": judged["test"]}
        return compared

    def row(self, name: str, metric: str, compared: Mapping[str, Any]) -> Row:
        """Float32 minus INT8 on the test split, with the interval of the paired bootstrap."""
        before, after = (compared[which]["test"].predictions.ratios[metric] for which in (FLOAT32, "rankyard"))
        loss, low, high = paired_difference(before, after, 2000, 0.95)
        theirs = before.value - compared["optimum"]["test"].predictions.ratios[metric].value
        return Row(
            data=name,
            configuration=f"{self._config.task}_transformer",
            metric=f"{metric} lost to INT8",
            value=loss,
            low=low,
            high=high,
            seeds=[self._config.training.seed],
            seconds=self._seconds,
            served_as=f"int8, {compared['rankyard']['figures']['size_bytes'] / 1e6:.1f} MB",
            target=MAX_LOSS,
            at_most=True,
            published=f"optimum, same run: {theirs:.4f}",
        )

    def _source(self) -> Source:
        return Source(
            path=self._bundle.path / MODEL,
            model=self._model,
            contents=self._bundle.manifest,
            train=self._splits.train.requests(),
            valid=self._splits.valid.requests(),
            answered=self._answered[FLOAT32],
            metrics=lambda answered: self._judge(self._splits.valid, answered).quality.metrics,
        )

    def _answer(self, path: Path, rows: Any) -> Any:
        session = OnnxSession(path, n_threads=0)
        return answer(self._model, self._bundle.manifest, session.run, rows.requests())

    def _judge(self, rows: Any, answered: Any) -> Evaluation:
        config = EvaluateConfig(n_resamples=100)
        return judge(self._model, self._bundle.manifest, rows, answered, config=config, seed=0)


def _rounded(trial: RecipeTrial) -> dict[str, Any]:
    return json.loads(json.dumps(trial.model_dump()), parse_float=lambda text: float(f"{float(text):.6g}"))


if __name__ == "__main__":
    main()

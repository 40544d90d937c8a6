"""Phases of ranking, alone and fused, on text pairs; losses of the listwise ranker beside trees, on numeric features.

python -m experiments.ranking_phases.run --data DIR [phases] [losses]   trains, writes results/STUDY.json

The rule of fusion that is reported stands in config.yaml; others are kept beside it. The weights of the fitted one are
those of the valid lists.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from experiments import command
from experiments.report import Row, mean_interval, save
from models import bootstrap, fusion
from models.config import read
from models.metrics import Ratio, ranking_metrics
from models.model import open_model
from models.ranking import RankingModel
from models.session import OnnxSession
from registry.tracking import Tracking
from registry.workspace import Workspace
from training import ranking
from training.config import TrainConfig, parse
from training.data.splits import RankingRows
from training.evaluate import answer
from training.fit import Checkpoint

HERE = Path(__file__).parent
METRIC = "ndcg@10"
SPLITS = ("valid", "test")

Scores = list[NDArray[np.floating]]


class Silent:
    """A recorder that listens to nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Forget."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Forget."""

    def say(self, sentence: str) -> None:
        """Forget."""


@dataclass(frozen=True)
class Scored:
    """A ranker's scores of the valid and the test lists, and what it took."""

    scores: Mapping[str, Scores]
    seconds: float
    served_as: str = "PyTorch and XGBoost"


def main() -> None:
    """Run the studies that are named, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", choices=["phases", "losses", []])
    parser.add_argument("--data", type=Path, required=True, help="holds the folders that config.yaml names")
    parser.add_argument("--workspace", type=Path, default=Path(".rankyard-ranking-phases"))
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    studies = {"phases": phases, "losses": losses}
    for name in options.studies or studies:
        rows, details = studies[name](config[name], options.data, options.workspace)
        called = f"python -m experiments.ranking_phases.run --data DIR {name}"
        save(HERE / "results" / f"{name}.json", rows, called, **details)
        for row in rows:
            print(f"{row.configuration}: {row.value:.4f} [{row.low:.4f}, {row.high:.4f}] target {row.target}")


def phases(study: Mapping[str, Any], data: Path, workspace: Path) -> tuple[list[Row], dict[str, Any]]:
    """Each phase alone, and the last one fused with the first by every rule."""
    ratios: dict[str, list[Ratio]] = {}
    valid: dict[str, list[float]] = {}
    trained: dict[str, list[Scored]] = {"first": [], "last": []}
    weights = []
    rule = study["fused"]["rule"]
    for seed in study["seeds"]:
        splits = ranking.read(data / study["data"], _config(study["last"]["configuration"], seed)).named()
        for phase, found in trained.items():
            found.append(_trained(study[phase], seed, data / study["data"], workspace / f"ws{seed}"))
        both = [found[-1].scores for found in trained.values()]
        weights.append(fusion.fit_weights([one["valid"] for one in both], splits["valid"].labels))
        for split in SPLITS:
            pairs = list(zip(*(one[split] for one in both), strict=True))
            answers = {
                "first": both[0][split],
                "last": both[1][split],
                "reciprocal_rank": [fusion.reciprocal_rank(pair) for pair in pairs],
                "linear, equal weights": [fusion.linear(pair, (0.5, 0.5)) for pair in pairs],
                "linear, fitted": [fusion.linear(pair, weights[-1]) for pair in pairs],
            }
            for name, scores in answers.items():
                ratio = _judge(splits[split], scores)
                if split == "test":
                    ratios.setdefault(name, []).append(ratio)
                else:
                    valid.setdefault(name, []).append(ratio.value)
    rows = [
        _row(study, phase, study[phase]["configuration"], ratios[phase], found[0].served_as, found)
        for phase, found in trained.items()
    ]
    joined = " + ".join(study[phase]["configuration"] for phase in trained)
    rows.append(_row(study, "fused", f"{joined}, {rule}", ratios[rule], "in phases", trained["last"]))
    details = {
        "weights": weights,
        "valid": valid,
        "test": {name: [ratio.value for ratio in its] for name, its in ratios.items()},
        "fused_less_first": [
            bootstrap.paired_difference(a, b) for a, b in zip(ratios[rule], ratios["first"], strict=True)
        ],
        "fused_less_last": [
            bootstrap.paired_difference(a, b) for a, b in zip(ratios[rule], ratios["last"], strict=True)
        ],
    }
    return rows, details


def losses(study: Mapping[str, Any], data: Path, workspace: Path) -> tuple[list[Row], dict[str, Any]]:
    """Every loss and trees on every fold; trees fused with the loss that is best on valid.

    The trees are those of the shipped configuration, which may have learned from valid: nothing is said of them there.
    """
    del workspace
    torch.set_num_threads(1)
    names = ["trees", *study["variants"]]
    values: dict[tuple[str, str], dict[str, list[Ratio]]] = {}
    kept: dict[tuple[str, str, int], Scored] = {}
    splits = {}
    for fold in study["data"]:
        splits[fold] = ranking.read(data / fold, _config(study["listwise"], 0)).named()
        for name in names:
            for seed in study["seeds"]:
                kind = "trees" if name == "trees" else "listwise"
                found = _fitted(_config(study[kind], seed, study["variants"].get(name)), data / fold)
                kept[fold, name, seed] = found
                for split in SPLITS:
                    ratio = _judge(splits[fold][split], found.scores[split])
                    values.setdefault((name, split), {}).setdefault(fold, []).append(ratio)
                print(f"{fold} {name} seed {seed}", flush=True)
    best = max(study["variants"], key=lambda name: _mean(values[name, "valid"]))
    fused = f"trees + {best}, reciprocal_rank"
    for (fold, name, seed), trees in kept.items():
        if name == "trees":
            pairs = zip(trees.scores["test"], kept[fold, best, seed].scores["test"], strict=True)
            scores = [fusion.reciprocal_rank(pair) for pair in pairs]
            values.setdefault((fused, "test"), {}).setdefault(fold, []).append(_judge(splits[fold]["test"], scores))
    rows = [_fold_row(study, name, values[name, "test"], kept) for name in names]
    rows.append(replace(_fold_row(study, fused, values[fused, "test"], kept), target=study["fused"]["target"]))
    return rows, {
        "valid": {name: _mean(values[name, "valid"]) for name in study["variants"]},
        "folds": {name: {fold: [r.value for r in its] for fold, its in values[name, "test"].items()} for name in names},
    }


def _trained(phase: Mapping[str, Any], seed: int, data: Path, workspace: Path) -> Scored:
    """Train by the command line, unless it was done; scores of the served variant."""
    name = f"{phase['name']}{seed}"
    tracking = Tracking(Workspace(workspace))
    if name not in [model["name"] for model in tracking.models()]:
        overrides = [f"training.seed={seed}"]
        answered = command.train("ranking", phase["configuration"], data, name, workspace, overrides)
        (workspace / f"{name}.json").write_text(json.dumps(answered))
    bundle = tracking.resolve(f"{name}@candidate")
    model = open_model(bundle.path, bundle.manifest)
    splits = ranking.read(data, parse(bundle.manifest.config, "ranking")).named()
    session = OnnxSession(bundle.model_file(), n_threads=0)
    scores = {
        split: [
            np.asarray(one.outputs["score"])
            for one in answer(model, bundle.manifest, session.run, splits[split].requests(), batch_size=4)
        ]
        for split in SPLITS
    }
    record = workspace / f"{name}.json"
    seconds = json.loads(record.read_text())["seconds"] if record.exists() else float("nan")
    return Scored(scores, seconds, f"{bundle.variant}, {bundle.model_file().stat().st_size / 1e6:.1f} MB")


def _fitted(config: TrainConfig, data: Path) -> Scored:
    """Train within this process; scores of the library that trained, which exports equal to 1e-4."""
    assert config.task == "ranking"
    begin = time.perf_counter()
    splits = ranking.read(data, config)
    with tempfile.TemporaryDirectory() as directory:
        fitted = ranking.fit(config, splits, Silent(), Checkpoint(Path(directory) / "checkpoint", "study"))
    contents: Any = getattr(fitted, "contents")  # noqa: B009
    model = RankingModel(contents)
    named = splits.named()
    scores = {
        split: [
            np.asarray(one["score"]).reshape(-1)
            for one in fitted.outputs([model.encode(request) for request in named[split].lists])
        ]
        for split in SPLITS
    }
    return Scored(scores, time.perf_counter() - begin)


def _config(configuration: str, seed: int, changes: Mapping[str, Any] | None = None) -> Any:
    raw = read(configuration)
    for part, its in (changes or {}).items():
        raw[part] = {**raw[part], **its}
    raw["training"] = {**raw["training"], "seed": seed}
    return parse(raw, "ranking")


def _judge(rows: RankingRows, scores: Sequence[NDArray[np.floating]]) -> Ratio:
    return ranking_metrics(rows.labels, list(scores))[METRIC]


def _mean(by_fold: Mapping[str, Sequence[Ratio]]) -> float:
    return float(np.mean([np.mean([ratio.value for ratio in its]) for its in by_fold.values()]))


def _row(
    study: Mapping[str, Any],
    phase: str,
    configuration: str,
    ratios: Sequence[Ratio],
    served_as: str,
    trained: Sequence[Scored],
) -> Row:
    value, low, high = mean_interval(
        [r.value for r in ratios], list(map(bootstrap.interval, ratios)), independent=False
    )
    return Row(
        data=study["data"],
        configuration=configuration,
        metric=METRIC,
        value=value,
        low=low,
        high=high,
        seeds=study["seeds"],
        seconds=float(np.mean([one.seconds for one in trained])),
        served_as=served_as,
        target=study[phase].get("target"),
        published=study[phase].get("published", ""),
    )


def _fold_row(
    study: Mapping[str, Any],
    name: str,
    by_fold: Mapping[str, Sequence[Ratio]],
    kept: Mapping[tuple[str, str, int], Scored],
) -> Row:
    folds = [
        mean_interval([r.value for r in its], list(map(bootstrap.interval, its)), independent=False)
        for its in by_fold.values()
    ]
    value, low, high = mean_interval([one[0] for one in folds], [one[1:] for one in folds], independent=True)
    seconds = [one.seconds for (_, its, _), one in kept.items() if its == name]
    return Row(
        data="mq2008",
        configuration=name,
        metric=METRIC,
        value=value,
        low=low,
        high=high,
        seeds=study["seeds"],
        seconds=float(np.mean(seconds)) if seconds else 0.0,
        served_as="the library that trained",
    )


if __name__ == "__main__":
    main()

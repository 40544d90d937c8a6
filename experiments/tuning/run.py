"""Tune the shipped ranking configurations on public data, then train default and tuned once more, with other seeds.

python -m experiments.tuning.run --data DIR [STUDY]...   tunes, trains, writes results/STUDY.json and STUDY.yaml
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import yaml

from experiments.command import evaluation, rankyard
from experiments.report import Row, mean_interval, save

HERE = Path(__file__).parent
METRIC = "ndcg@10"


def main() -> None:
    """Run the studies that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY")
    parser.add_argument("--data", type=Path, required=True, help="holds the folders that config.yaml names")
    parser.add_argument("--workspace", type=Path, default=Path(".rankyard-tuning"))
    parser.add_argument("--workers", default="1")
    options = parser.parse_args()
    studies = yaml.safe_load((HERE / "config.yaml").read_text())
    for name in options.studies or studies:
        run(name, studies[name], options)


def run(name: str, study: dict[str, Any], options: argparse.Namespace) -> None:
    data = str(options.data / study["data"])
    common = ["--data", data, "--workspace", str(options.workspace), "--name", name]
    limits = ["--trials", str(study["trials"]), "--timeout", str(study["timeout_s"]), "--workers", options.workers]
    tuned = rankyard("tune", study["task"], "--config", study["study"], *limits, *common)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    shutil.copyfile(tuned["best_config"], results / f"{name}.yaml")
    runs = {
        label: [
            judged(rankyard("train", study["task"], "--config", config, "--set", f"training.seed={seed}", *common))
            for seed in study["seeds"]
        ]
        for label, config in (("default", study["base"]), ("tuned", tuned["best_config"]))
    }
    for label, its in runs.items():
        print(label, "valid", [one["valid"] for one in its], "test", [one["test"] for one in its])
    value, low, high = mean_interval(
        [one["test"] for one in runs["tuned"]], [one["interval"] for one in runs["tuned"]], independent=False
    )
    row = Row(
        data=name,
        configuration=study["study"],
        metric=METRIC,
        value=value,
        low=low,
        high=high,
        seeds=study["seeds"],
        seconds=tuned["seconds"],
        served_as=runs["tuned"][0]["served_as"],
    )
    kept = ("study", "trials", "best", "base", "seconds", "metrics")
    save(
        results / f"{name}.json",
        [row],
        f"python -m experiments.tuning.run --data DIR --workers {options.workers} {name}",
        tune={key: tuned[key] for key in kept} | {"limits": study},
        runs=runs,
    )


def judged(answer: dict[str, Any]) -> dict[str, Any]:
    """NDCG@10 of a training: on its valid part, and on test with its interval."""
    report = evaluation(Path(answer["bundle"]))
    served = report["variants"][report["served_variant"]]
    return {
        "valid": answer["metrics"]["valid"][METRIC],
        "test": answer["metrics"]["test"][METRIC],
        "interval": served["quality"]["test"]["intervals"][METRIC],
        "seconds": answer["seconds"],
        "served_as": f"{report['served_variant']}, {served['size_bytes'] / 1e6:.1f} MB",
    }


if __name__ == "__main__":
    main()

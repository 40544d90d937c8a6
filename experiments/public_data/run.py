"""Train every shipped configuration on public data, from the command line, and keep what the test split says.

python -m experiments.public_data.run --data DIR [STUDY]...   trains, writes results/STUDY.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from experiments import command
from experiments.report import Row, mean_interval, save
from registry.bundle import Bundle

HERE = Path(__file__).parent


def main() -> None:
    """Run the studies that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY")
    parser.add_argument("--data", type=Path, required=True, help="holds the folders that config.yaml names")
    parser.add_argument("--workspace", type=Path, default=Path(".rankyard-public-data"))
    options = parser.parse_args()
    studies = yaml.safe_load((HERE / "config.yaml").read_text())
    for name in options.studies or studies:
        study = studies[name]
        runs = [
            train(name, study, seed, options.data / folder, options.workspace)
            for folder in study["data"]
            for seed in study["seeds"]
        ]
        rows = [row(name, study, metric, facts or {}, runs) for metric, facts in study["metrics"].items()]
        save(
            HERE / "results" / f"{name}.json",
            rows,
            f"python -m experiments.public_data.run --data DIR {name}",
            runs=runs,
        )
        for one in rows:
            print(f"{one.data} {one.metric} {one.value:.4f} [{one.low:.4f}, {one.high:.4f}] target {one.target}")


def train(name: str, study: dict[str, Any], seed: int, data: Path, workspace: Path) -> dict[str, Any]:
    """Train once; gives the figures of the test split with their intervals."""
    with tempfile.TemporaryDirectory() as directory:
        drawn = name
        if "per_label" in study:
            data, drawn = few(data, Path(directory), study["per_label"], seed), f"{name}-{seed}"
        overrides = [f"training.seed={seed}", *study.get("set", [])]
        taught_by = teachers(study, drawn, data, workspace) if "teachers" in study else []
        if taught_by:
            overrides.append(f"teacher=[{', '.join(str(bundle.path) for bundle in taught_by)}]")
        answer = command.train(study["task"], study["configuration"], data, name, workspace, overrides)
    report = command.evaluation(Path(answer["bundle"]))
    served = report["variants"][report["served_variant"]]
    return {
        "data": data.name,
        "seed": seed,
        "seconds": answer["seconds"],
        "served_variant": report["served_variant"],
        "size_bytes": served["size_bytes"],
        # None where the model was refitted on it.
        "valid": served["quality"]["valid"]["metrics"] if "valid" in served["quality"] else None,
        "test": served["quality"]["test"]["metrics"],
        "intervals": served["quality"]["test"]["intervals"],
        "float32_test": report["variants"]["float32"]["quality"]["test"]["metrics"],
        "latency": served["latency"],
        "teachers_test": [command.quality_on_test(bundle) for bundle in taught_by],
    }


def teachers(study: dict[str, Any], name: str, data: Path, workspace: Path) -> list[Bundle]:
    """Those to learn from, one a seed: trained where the workspace lacks them."""
    its = study["teachers"]
    found = []
    for seed in its["seeds"]:
        overrides = [f"training.seed={seed}", *its.get("set", [])]
        its_name = f"{name}-teacher-{seed}"
        found.append(command.trained(study["task"], its["configuration"], data, its_name, workspace, overrides))
    return found


def few(data: Path, directory: Path, per_label: int, seed: int) -> Path:
    """Write a data directory whose train file holds `per_label` rows of every label, chosen by `seed`.

    `queries.txt` holds the texts of the others, where the rows are of words.
    """
    by_label: defaultdict[str, list[str]] = defaultdict(list)
    for line in (data / "train.jsonl").read_text().splitlines():
        by_label[json.loads(line)["label"]].append(line)
    chooser = random.Random(seed)
    chosen = [line for label in sorted(by_label) for line in chooser.sample(by_label[label], per_label)]
    (directory / "train.jsonl").write_text("\n".join(chosen) + "\n")
    others = [json.loads(line) for line in sorted(set().union(*by_label.values()) - set(chosen))]
    (directory / "queries.txt").write_text("".join(f"{' '.join(row['tokens'])}\n" for row in others if "tokens" in row))
    for split in ("valid", "test"):
        with gzip.open(directory / f"{split}.jsonl.gz", "wb") as file:
            file.write((data / f"{split}.jsonl").read_bytes())
    return directory


def row(name: str, study: dict[str, Any], metric: str, facts: dict[str, Any], runs: list[dict[str, Any]]) -> Row:
    """Join the runs: the mean over folds of the mean over seeds, with its interval."""
    by_fold: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        by_fold[run["data"] if "per_label" not in study else name].append(run)
    folds = [
        mean_interval(
            [run["test"][metric] for run in its], [run["intervals"][metric] for run in its], independent=False
        )
        for its in by_fold.values()
    ]
    value, low, high = mean_interval(
        [mean for mean, _, _ in folds], [(low, high) for _, low, high in folds], independent=True
    )
    return Row(
        data=name,
        configuration=study["configuration"],
        metric=metric,
        value=value,
        low=low,
        high=high,
        seeds=study["seeds"],
        seconds=sum(run["seconds"] for run in runs) / len(runs),
        served_as=f"{runs[0]['served_variant']}, {max(run['size_bytes'] for run in runs) / 1e6:.1f} MB",
        target=facts.get("target"),
        at_most=facts.get("at_most", False),
        published=facts.get("published", ""),
    )


if __name__ == "__main__":
    main()

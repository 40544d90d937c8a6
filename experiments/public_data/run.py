"""Train every shipped configuration on public data, from the command line, and keep what the test split says.

python experiments/public_data/run.py --data DIR [STUDY]...   trains, writes results/STUDY.json
python experiments/public_data/run.py --table                 prints the table of what is in results/
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = ("rankyard", "torch", "transformers", "scikit-learn", "xgboost", "onnxruntime")
SHOWN = {
    "intent": ("accuracy_in_scope", "accuracy", "oos_recall"),
    "tagging": ("intent_accuracy", "span_f1", "exact_match"),
    "ranking": ("ndcg@10", "ndcg@10_empty_zero"),
}


def main() -> None:
    """Run the studies that are named, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY")
    parser.add_argument("--data", type=Path, help="holds the folders that config.yaml names")
    parser.add_argument("--workspace", type=Path, default=Path(".rankyard-public-data"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    if options.table:
        print(table(config["studies"]))
        return
    if options.data is None:
        parser.error("--data DIR must be given")
    for name in options.studies or config["studies"]:
        study = config["studies"][name]
        result = run(name, study, config["seed"], options.data, options.workspace)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps({"study": name, **result["test"], "seconds": result["seconds"]}))


def run(name: str, study: dict[str, Any], seed: int, data: Path, workspace: Path) -> dict[str, Any]:
    """Train once; gives the test split's figures with their intervals, and what they were measured with."""
    command = ["train", study["task"], "--config", study["config"], "--data", str(data / study["data"])]
    command += ["--name", name, "--set", f"training.seed={seed}"]
    rankyard = [sys.executable, "-m", "rankyard"]
    done = subprocess.run(
        [*rankyard, *command, "--workspace", str(workspace), "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    answer = json.loads(done.stdout)
    report = json.loads((Path(answer["bundle"]) / "evaluation.json").read_text())
    served = report["variants"][report["served_variant"]]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], check=True, stdout=subprocess.PIPE, text=True, cwd=HERE
        ).stdout.strip(),
        "command": "rankyard "
        + " ".join(part if part != str(data / study["data"]) else study["data"] for part in command),
        "seed": seed,
        "seconds": answer["seconds"],
        "served_variant": report["served_variant"],
        "size_bytes": served["size_bytes"],
        "n": served["quality"]["test"]["n"],
        "test": served["quality"]["test"]["metrics"],
        "intervals": served["quality"]["test"]["intervals"],
        "float32_test": report["variants"]["float32"]["quality"]["test"]["metrics"],
        "latency": served["latency"],
        "targets": study.get("targets", {}),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def table(studies: dict[str, Any]) -> str:
    """Markdown: a row a study that has a result."""
    rows = [
        "| data | configuration | test split, 95 % interval | served as | seed | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, study in studies.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        figures = ", ".join(
            f"{metric} **{result['test'][metric]:.3f}** [{low:.3f}, {high:.3f}]"
            for metric in SHOWN[study["task"]]
            for low, high in [result["intervals"][metric]]
        )
        size = f"{result['served_variant']}, {result['size_bytes'] / 1e6:.1f} MB"
        rows.append(
            f"| {name} | `{study['config']}` | {figures} | {size} | {result['seed']} | {result['seconds']:.0f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()

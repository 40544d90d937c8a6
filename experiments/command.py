"""The command line, as the studies call it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import NotFoundError
from registry.bundle import Bundle
from registry.tracking import Tracking
from registry.workspace import Workspace


def rankyard(*arguments: str) -> dict[str, Any]:
    """Run one command; gives what it prints as JSON."""
    command = [sys.executable, "-m", "rankyard", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def train(
    task: str, configuration: str, data: Path, name: str, workspace: Path, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Train and register; gives what `rankyard train` prints."""
    settings = [part for override in overrides for part in ("--set", override)]
    places = ["--data", str(data), "--name", name, "--workspace", str(workspace)]
    return rankyard("train", task, "--config", configuration, *places, *settings)


def trained(
    task: str, configuration: str, data: Path, name: str, workspace: Path, overrides: Sequence[str] = ()
) -> Bundle:
    """The model that the workspace has under its name, trained first where it has none."""
    tracking = Tracking(Workspace(workspace.absolute()))
    try:
        return tracking.resolve(f"{name}@candidate")
    except NotFoundError:
        train(task, configuration, data, name, tracking.workspace.root, overrides)
        return tracking.resolve(f"{name}@candidate")


def options(description: str | None) -> argparse.ArgumentParser:
    """Options of a study that takes long; those of its own are added to `--quick`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short times, for trying; writes no result")
    return parser


def some_texts(file: Path, n: int = 512) -> list[str]:
    """Up to `n` texts of a file in random order, always the same; JSON lines with `text`, `title` or `tokens`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, np.random.default_rng(0).permutation(lines)[:n])
    return [row.get("text") or row.get("title") or " ".join(row["tokens"]) for row in rows]


def demo_shop(workspace: Path) -> Path:
    """Write the demo shop's files into the workspace."""
    data = workspace / "demo"
    rankyard("demo", "--data-only", str(data), "--workspace", str(workspace))
    return data


def demo_intent(workspace: Path, settings: Mapping[str, Any]) -> Path:
    """Give the bundle that an earlier run left in the workspace, or train one on the demo shop for one pass.

    Speed asks for a model's size alone. settings: `config` and the `settings` that differ from it.
    """
    note = workspace / "intent"
    if not note.exists():
        data = demo_shop(workspace) / "intent"
        trained = train("intent", settings["config"], data, "study-intent", workspace, settings["settings"])
        note.write_text(trained["bundle"])
    return Path(note.read_text())


def quality_on_test(bundle: Bundle) -> dict[str, float]:
    """The served variant's figures on the test split."""
    report = evaluation(bundle.path)
    found: dict[str, float] = report["variants"][report["served_variant"]]["quality"]["test"]["metrics"]
    return found


def evaluation(bundle: Path) -> dict[str, Any]:
    """Read the `evaluation.json` of a bundle."""
    report: dict[str, Any] = json.loads((bundle / "evaluation.json").read_text())
    return report

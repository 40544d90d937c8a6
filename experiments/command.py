"""The command line, as the studies call it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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


def evaluation(answer: dict[str, Any]) -> dict[str, Any]:
    """Read the `evaluation.json` of the bundle that an answer names."""
    report: dict[str, Any] = json.loads((Path(answer["bundle"]) / "evaluation.json").read_text())
    return report

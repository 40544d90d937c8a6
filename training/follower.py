"""`python -m training.follower`: a process beside the first one of a training; see `training.processes`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.tracking import Tracking
from registry.workspace import Workspace
from training.config import parse
from training.line import Order, follow
from training.processes import follow as follow_first


def run(order: Mapping[str, Any]) -> None:
    """Train as the first process does."""
    config = parse(order["config"], order["config"]["task"])
    follow(Order(config, Path(order["data"]), order["name"]), Tracking(Workspace(Path(order["workspace"]))))


if __name__ == "__main__":
    follow_first(run)

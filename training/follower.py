"""`python -m training.follower`: a process beside the first one of a training; see `training.processes`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from registry.tracking import Tracking
from registry.workspace import Workspace
from training.config import parse
from training.line import Order, follow
from training.processes import joined


def main() -> None:
    """Read the order from standard input and train as the first process does."""
    told = json.load(sys.stdin)
    order = Order(parse(told["config"], told["config"]["task"]), Path(told["data"]), told["name"])
    with joined(told):
        follow(order, Tracking(Workspace(Path(told["workspace"]))))


if __name__ == "__main__":
    main()

"""The one form of a study's results, and the README's table of them.

python -m experiments.report    prints the table of every experiments/*/results/*.json: the rows with a target
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "scikit-learn", "xgboost", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of the test split with its interval, over all seeds: a line of the README's table.

    value, low, high, target: in the metric's own unit, fractions for quality. at_most: the target is a ceiling.
    published: other people's figure on the same file, with its source. seconds: of one training, the mean over seeds.
    """

    data: str
    configuration: str
    metric: str
    value: float
    low: float
    high: float
    seeds: Sequence[int]
    seconds: float
    served_as: str
    target: float | None = None
    at_most: bool = False
    published: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


def save(path: Path, rows: Sequence[Row], command: str, **details: Any) -> None:
    """Write one study's result with everything that it was measured with."""
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], check=True, stdout=subprocess.PIPE, text=True, cwd=HERE
        ).stdout.strip(),
        "command": command,
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "rows": [asdict(row) for row in rows],
        **details,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def mean_interval(
    values: Sequence[float], intervals: Sequence[tuple[float, float]], *, independent: bool
) -> tuple[float, float, float]:
    """Mean of several estimates with its interval.

    independent: of different test examples (folds), so that their half-widths add in squares; estimates of the same
    examples (seeds) keep the mean of their half-widths, which is no narrower than the mean's own.
    """
    n = len(values)
    mean = sum(values) / n
    below = [value - low for value, (low, _) in zip(values, intervals, strict=True)]
    above = [high - value for value, (_, high) in zip(values, intervals, strict=True)]
    widths = [math.hypot(*side) / n if independent else sum(side) / n for side in (below, above)]
    return mean, mean - widths[0], mean + widths[1]


def table() -> str:
    """Markdown: a line a row that has a target, in the order of the studies' names; the others are in their files."""
    lines = [
        "| data | configuration | metric | test, 95 % interval | target | published | served as | seeds | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(HERE.glob("*/results/*.json")):
        rows = [Row(**row) for row in json.loads(path.read_text()).get("rows", [])]
        lines += [_line(row) for row in rows if row.target is not None]
    return "\n".join(lines)


def _line(row: Row) -> str:
    target = "" if row.target is None else f"{'≤' if row.at_most else '≥'} {row.target:g} {'✓' if row.holds else '✗'}"
    figure = f"**{row.value:.3f}**" + (f" [{row.low:.3f}, {row.high:.3f}]" if row.low < row.high else "")
    model = f"`{row.configuration}`"
    cells = (row.data, model, row.metric, figure, target, row.published, row.served_as, len(row.seeds))
    return f"| {' | '.join(map(str, cells))} | {row.seconds:.0f} |"


if __name__ == "__main__":
    print(table())

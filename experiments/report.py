"""The one form of a study's results, and the README's tables of them.

python -m experiments.report            prints the tables of experiments/*/results/*.json: the rows with a target
python -m experiments.report --write    puts them into the README
"""

from __future__ import annotations

import argparse
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
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
SECTIONS = {
    "Models": ("public_data", "ranking_phases", "click_debiasing", "distillation", "quantization"),
    "Training": ("training_speed",),
    "Serving": (
        "serving_limit",
        "serving_peers",
        "serving_overload",
        "serving_faults",
        "serving_soak",
        "serving_tracing",
        "tree_scoring",
    ),
}
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


def commit_of(checkout: Path) -> str:
    """The commit that a checkout stands at."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def save(path: Path, rows: Sequence[Row], command: str, **details: Any) -> None:
    """Write one study's result with everything that it was measured with."""
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit_of(HERE),
        "command": command,
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "rows": [asdict(row) for row in rows],
        **details,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def print_rows(rows: Sequence[Row]) -> None:
    """Say every figure with its target beside it."""
    for row in rows:
        mark = {True: "holds", False: "MISSED", None: ""}[row.holds]
        target = "" if row.target is None else f"{'<=' if row.at_most else '>='} {row.target:g} {mark}"
        name = f"{row.data} | {row.configuration} | {row.served_as} | {row.metric}"
        print(f"{name}: {row.value:.3f} [{row.low:.3f}, {row.high:.3f}] {target}".rstrip())


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


def tables() -> str:
    """Markdown: a table a section, a line a row that has a target; the others are in their files."""
    return "\n\n".join(f"#### {title}\n\n{_table(studies)}" for title, studies in SECTIONS.items())


def _table(studies: Sequence[str]) -> str:
    header = ("study", "data", "configuration", "metric", "measured, 95 % interval", "target", "published", "served as")
    lines = [(*header, "runs", "seconds")]
    for study in studies:
        for path in sorted((HERE / study / "results").glob("*.json")):
            rows = [Row(**row) for row in json.loads(path.read_text()).get("rows", [])]
            lines += [_cells(study, row) for row in rows if row.target is not None]
    used = [column for column in zip(*lines, strict=True) if any(column[1:])]
    lines = list(zip(*used, strict=True))
    lines.insert(1, ("---",) * len(used))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(study: str, row: Row) -> tuple[str, ...]:
    figure = f"**{row.value:.3f}**" + (f" [{row.low:.3f}, {row.high:.3f}]" if row.low < row.high else "")
    target = f"{'≤' if row.at_most else '≥'} {row.target:g} {'✓' if row.holds else '✗'}"
    link, model, seconds = f"[{study}](experiments/{study})", f"`{row.configuration}`", f"{row.seconds:.0f}"
    cells = (link, row.data, model, row.metric, figure, target, row.published, row.served_as, str(len(row.seeds)))
    return (*cells, "" if seconds == "0" else seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into the README")
    if not parser.parse_args().write:
        print(tables())
        return
    before, _, after = README.read_text().partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after.partition(END)[2]}")


if __name__ == "__main__":
    main()

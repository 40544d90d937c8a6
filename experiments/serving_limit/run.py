"""The gateway against the limit of the machine: the model alone, its own decoding, Triton's client, other scorers.

python -m experiments.serving_limit.run [--intent BUNDLE] [--parts NAME,...] [--quick]    writes results/limit.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from experiments.command import rankyard, train
from experiments.report import Row, save
from experiments.serving_limit import ranker
from experiments.serving_limit.client import load_itself
from experiments.serving_limit.on_triton import over_triton
from experiments.serving_limit.ranking import by_value, scoring
from experiments.serving_limit.study import Part, Study
from experiments.serving_limit.understanding import against_raw, open_load, repeated, starting, workers
from models.errors import RankyardError
from serving.bench import files
from serving.bench.queries import generated, of_file

HERE = Path(__file__).parent
PARTS: Mapping[str, Callable[[Study], Part]] = {
    "client": load_itself,
    "raw": against_raw,
    "open": open_load,
    "zipf": repeated,
    "rank": by_value,
    "scoring": scoring,
    "triton": over_triton,
    "start": starting,
    "workers": workers,
}
QUICK = {"repetitions": 2, "seconds": 0.6, "warmup_seconds": 0.2}


def main() -> None:
    """Measure the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intent", type=Path, metavar="BUNDLE", help="default: trained here on the demo shop")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="a query a line (default: generated ones)")
    parser.add_argument("--workspace", type=Path, help="kept, so that models are trained once (default: a new one)")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "rankyard-peers")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="short times, for trying; writes no result")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text()) | (QUICK if options.quick else {})
    text = of_file(files.lines(options.queries), 0) if options.queries else generated(0)
    with tempfile.TemporaryDirectory(prefix="rankyard-limit-") as made:
        workspace = (options.workspace or Path(made)).absolute()
        options.environments.mkdir(parents=True, exist_ok=True)
        intent = (options.intent or trained_intent(workspace, config["intent"])).absolute()
        bundle = ranker.found_or_trained(workspace, config["ranker"])
        study = Study(config, intent, bundle, workspace, options.environments.absolute(), text)
        parts = {name: _measured(name, study) for name in options.parts.split(",")}
    rows = [row for part in parts.values() for row in part.rows]
    print_rows(rows)
    if not options.quick:
        details = {name: part.details for name, part in parts.items() if part.details}
        command = f"python -m experiments.serving_limit.run --intent BUNDLE --parts {options.parts}"
        save(HERE / "results" / "limit.json", rows, command, parts=details)


def print_rows(rows: Sequence[Row]) -> None:
    """Say every ratio with its target beside it."""
    for row in rows:
        mark = {True: "holds", False: "MISSED", None: ""}[row.holds]
        target = "" if row.target is None else f"{'<=' if row.at_most else '>='} {row.target:g} {mark}"
        print(
            f"{row.data} | {row.configuration} | {row.metric}: {row.value:.3f} [{row.low:.3f}, {row.high:.3f}] {target}"
        )


def trained_intent(workspace: Path, settings: dict[str, Any]) -> Path:
    """Train the demo shop's intent model for one pass: speed asks for its size alone."""
    data = workspace / "demo"
    rankyard("demo", "--data-only", str(data), "--workspace", str(workspace))
    return Path(
        train("intent", settings["config"], data / "intent", "limit-intent", workspace, settings["settings"])["bundle"]
    )


def _measured(name: str, study: Study) -> Part:
    print(f"{name}", file=sys.stderr, flush=True)
    begin_s = time.perf_counter()
    try:
        part = PARTS[name](study)
    except RankyardError as error:
        # A part that this machine cannot run, as without a Triton server, leaves the others alone.
        print(f"  left out: {error.message}", file=sys.stderr)
        return Part([], {"left_out": error.message})
    seconds = round(time.perf_counter() - begin_s, 1)
    print(f"  {seconds:.0f} s", file=sys.stderr)
    return replace(part, rows=[replace(row, seconds=seconds) for row in part.rows])


if __name__ == "__main__":
    main()

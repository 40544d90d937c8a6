"""The gateway against the limit of the machine: the model alone, its own decoding, Triton's client, other scorers.

python -m experiments.serving_limit.run [--intent BUNDLE] [--parts NAME,...] [--quick]    writes results/limit.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from experiments import command
from experiments.report import print_rows, save
from experiments.serving_limit import ranker
from experiments.serving_limit.client import load_itself
from experiments.serving_limit.on_triton import over_triton
from experiments.serving_limit.processes import processes
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
    "processes": processes,
}
QUICK = {"repetitions": 2, "seconds": 0.6, "warmup_seconds": 0.2}


def main() -> None:
    """Measure the parts that are named."""
    parser = command.options(__doc__)
    parser.add_argument("--intent", type=Path, metavar="BUNDLE", help="default: trained here on the demo shop")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="a query a line (default: generated ones)")
    parser.add_argument("--workspace", type=Path, help="kept, so that models are trained once (default: a new one)")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "rankyard-peers")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text()) | (QUICK if options.quick else {})
    text = of_file(files.lines(options.queries), 0) if options.queries else generated(0)
    with tempfile.TemporaryDirectory(prefix="rankyard-limit-") as made:
        workspace = (options.workspace or Path(made)).absolute()
        options.environments.mkdir(parents=True, exist_ok=True)
        intent = (options.intent or command.demo_intent(workspace, config["intent"])).absolute()
        bundle = ranker.found_or_trained(workspace, config["ranker"])
        study = Study(config, intent, bundle, workspace, options.environments.absolute(), text)
        parts = {name: _measured(name, study) for name in options.parts.split(",")}
    rows = [row for part in parts.values() for row in part.rows]
    print_rows(rows)
    if not options.quick:
        details = {name: part.details for name, part in parts.items() if part.details}
        reproduced_by = f"python -m experiments.serving_limit.run --intent BUNDLE --parts {options.parts}"
        save(HERE / "results" / "limit.json", rows, reproduced_by, parts=details)


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

"""This tree's gateway beside that of another checkout: what a change is worth, and what chance alone does.

python -m experiments.two_trees.run BEFORE BUNDLE [--queries FILE] [--quick]    writes results/FAMILY.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

from experiments import command, loops
from experiments.report import Row, commit_of, print_rows, save
from experiments.servers import gateway
from experiments.turns import Figures, in_turns, median_interval, medians, ratios, row, series
from registry.bundle import Bundle, open_bundle
from serving.bench import files
from serving.bench.queries import Text, generated, of_file
from serving.bench.traffic import post, rank, rank_body, requests, understand_body

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BEFORE, NOW, AGAIN = "before", "now", "now, another process"
ROUNDS, SECONDS = 31, 0.4
LIST_SIZE = 100
LOOP = "loop_us"
COMPARED = {1: ("p50_ms",), 8: ("throughput_per_s",), 32: ("throughput_per_s", LOOP)}
"""Callers, and what of a round is compared."""
NAMES = {"p50_ms": "p50", "throughput_per_s": "requests/s", LOOP: "processor time of the event loop a request"}


def main() -> None:
    """Load three gateways in turns, every number of callers by itself."""
    parser = command.options(__doc__)
    parser.add_argument("before", type=Path, help="a checkout of this project")
    parser.add_argument("bundle", type=Path, help="what both serve; for a ranking model lists are sent by column")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="a query a line (default: generated ones)")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    text = of_file(files.lines(options.queries), 0) if options.queries else generated(0)
    trees = {BEFORE: options.before.absolute(), NOW: ROOT, AGAIN: ROOT}
    with tempfile.TemporaryDirectory(prefix="rankyard-trees-") as made, ExitStack() as stack:
        servers = {
            name: stack.enter_context(gateway(serving(bundle), Path(made), name.replace(" ", "-"), tree=tree))
            for name, tree in trees.items()
        }
        sent = {name: asked(server.url, bundle, text) for name, server in servers.items()}
        contestants: dict[str, Callable[[], Figures]] = {}
        for callers in COMPARED:
            for name, server in servers.items():
                contestants[f"{name}, {callers}"] = lambda name=name, server=server, callers=callers: (
                    loops.closed_and_cost(
                        server.url, sent[name], callers, SECONDS, SECONDS / 4, lambda: server.loop_cpu_s, LOOP
                    )
                )
        found = in_turns(contestants, 2 if options.quick else ROUNDS)
    rows = [one for callers in COMPARED for one in compared(bundle, callers, found)]
    print_rows(rows)
    if not options.quick:
        save(
            HERE / "results" / f"{bundle.manifest.family}.json",
            rows,
            "python -m experiments.two_trees.run BEFORE BUNDLE",
            before=commit_of(options.before),
            medians=medians(found, (*NAMES, "client_cpu_share")),
        )


def serving(bundle: Bundle) -> dict[str, Any]:
    """What the gateways are told: this bundle, and to keep no answer."""
    return {"models": {bundle.manifest.family: str(bundle.path)}, "cache": {"max_bytes": 0}}


def asked(url: str, bundle: Bundle, text: Text) -> Iterator[bytes]:
    """Requests without end, none twice."""
    if bundle.manifest.family != "ranking":
        return requests(post(url, "/v1/understand", understand_body(text)), count())
    body = rank_body(text, bundle.manifest.features or (), (LIST_SIZE,), form="columns", seed=0)
    return requests(rank(url, body, "columns", model=bundle.manifest.name), count())


def compared(bundle: Bundle, callers: int, found: dict[str, list[Figures]]) -> list[Row]:
    """Ratios of one round each, with the same ratio of two gateways of one tree: what chance alone does."""
    rows = []
    for name, other in ((NOW, BEFORE), (AGAIN, NOW)):
        for figure in COMPARED[callers]:
            values = ratios(series(found[f"{name}, {callers}"], figure), series(found[f"{other}, {callers}"], figure))
            low, high = median_interval(values)
            data = f"{bundle.manifest.family}, {callers} caller" + "s" * (callers > 1)
            more = {"low": low, "high": high, "served_as": bundle.variant}
            rows.append(row(data, f"{name} to {other}", f"{NAMES[figure]}, ratio", values, **more))
    return rows


if __name__ == "__main__":
    main()

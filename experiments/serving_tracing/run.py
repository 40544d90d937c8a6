"""A gateway that traces one request of a hundred beside one that traces none.

python -m experiments.serving_tracing.run [--workspace DIR] [--quick]    writes results/tracing.json
"""

from __future__ import annotations

import itertools
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from experiments import command, loops
from experiments.report import Row, print_rows, save
from experiments.servers import Server, exchange, free_port, gateway, serving
from experiments.serving_limit import ranker
from experiments.turns import Figures, in_turns, median_interval, medians, ratios, series
from registry.bundle import open_bundle
from serving.bench.queries import generated, numbers
from serving.bench.traffic import post, rank_body, requests, understand_body

HERE = Path(__file__).parent
QUICK = {"sets": 1, "rounds": 1, "seconds": 0.5}
NONE, AGAIN, TRACED = "no tracing", "no tracing, another process", "tracing"
HIT, MISS, RANK = "understand, kept answer", "understand, distinct queries", "rank, by columns"
TARGET = 0.97
KEYS = (*loops.KEYS, "server_cpu_us")
_APART = 1_000_000
"""Distinct queries of one stream, before those of the next."""
_GET = b"GET /%b HTTP/1.1\r\nhost: a\r\n\r\n"


def main() -> None:
    """Measure all gateways in turns."""
    parser = command.options(__doc__)
    parser.add_argument("--workspace", type=Path, help="kept, so that models are trained once (default: a new one)")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text()) | (QUICK if options.quick else {})
    with tempfile.TemporaryDirectory(prefix="rankyard-tracing-") as made:
        workspace = (options.workspace or Path(made)).absolute()
        models = {"intent": str(command.demo_intent(workspace, config["intent"]))}
        models["ranking"] = str(ranker.found_or_trained(workspace, config["ranker"]))
        found: dict[str, list[Figures]] = {}
        n_sent = 0.0
        for number in range(config["sets"]):
            figures, n_traces = one_set(config, workspace, models, number)
            n_sent += n_traces
            for key, values in figures.items():
                found.setdefault(key, []).extend(values)
    rows = compared(config, found)
    print_rows(rows)
    if not options.quick:
        reproduced_by = "python -m experiments.serving_tracing.run"
        save(HERE / "results" / "tracing.json", rows, reproduced_by, medians=medians(found, KEYS), traces_sent=n_sent)


def one_set(
    config: dict[str, Any], workspace: Path, models: dict[str, str], number: int
) -> tuple[dict[str, list[Figures]], float]:
    """Load fresh gateways in turns; how many traces were delivered too."""
    port = free_port()
    receiving = [sys.executable, "-m", "experiments.serving_tracing.collector", str(port)]
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(serving(receiving, url, _GET % b"", workspace / "collector.log", environment={}))
        tracing = {"endpoint": f"{url}/v1/traces", "ratio": config["ratio"]}
        # One scorer of trees, so that all have the same whatever they measure at load.
        plain: dict[str, Any] = {"models": models, "runtime": {"scorers": ["onnx"]}}
        settings = {NONE: plain, AGAIN: plain, TRACED: plain | {"tracing": tracing}}
        servers = {
            name: stack.enter_context(gateway(given, workspace / "gateways", name.replace(" ", "-")))
            for name, given in settings.items()
        }
        contestants: dict[str, Callable[[], Figures]] = {}
        for scenario in (HIT, MISS, RANK):
            for name, server in servers.items():
                sent = sent_to(server.url, scenario, Path(models["ranking"]), config["list_size"], number * _APART)
                contestants[f"{name}, {scenario}"] = lambda server=server, sent=sent: load(config, server, sent)
        found = in_turns(contestants, config["rounds"])
        metrics = exchange(servers[TRACED].url, _GET % b"metrics")[1].decode()
    sent_traces = re.search(r'^rankyard_traces_total{result="sent"} (\S+)$', metrics, re.MULTILINE)
    return found, float(sent_traces[1]) if sent_traces else 0.0


def load(config: dict[str, Any], server: Server, sent: Iterator[bytes]) -> Figures:
    """One closed loop, and what the server's process spent on each of its requests."""
    seconds, warmup_s = config["seconds"], config["warmup_seconds"]
    return loops.closed_and_cost(server.url, sent, config["concurrency"], seconds, warmup_s, lambda: server.cpu_s)


def sent_to(url: str, scenario: str, ranking: Path, list_size: int, first: int) -> Iterator[bytes]:
    """Requests of one scenario, without end; first: number of the first distinct query."""
    text = generated(0)
    if scenario == RANK:
        features = open_bundle(ranking).manifest.features or ()
        make = post(url, "/v1/rank", rank_body(text, features, (list_size,), form="columns", seed=0))
        return requests(make, numbers(0))
    make = post(url, "/v1/understand", understand_body(text))
    return itertools.repeat(make(0)) if scenario == HIT else requests(make, itertools.count(first))


def compared(config: dict[str, Any], found: dict[str, list[Figures]]) -> list[Row]:
    """Ratios of one round each, with the same ratio of two gateways that both trace nothing: what chance alone does."""
    rows = []
    for scenario in (HIT, MISS, RANK):
        for name in (TRACED, AGAIN):
            for metric, figure in (("requests/s", "throughput_per_s"), ("processor time a request", "server_cpu_us")):
                above, below = (series(found[f"{one}, {scenario}"], figure) for one in (name, NONE))
                values = ratios(above, below)
                low, high = median_interval(values)
                is_aim = name == TRACED and figure == "throughput_per_s"
                configuration = f"{name} of {config['ratio']:.0%}" if name == TRACED else name
                rows.append(
                    Row(
                        data=scenario,
                        configuration=configuration,
                        metric=f"{metric}, times that without",
                        value=round(statistics.median(values), 4),
                        low=low,
                        high=high,
                        seeds=list(range(len(values))),
                        seconds=0.0,
                        served_as="float32",
                        target=TARGET if is_aim else None,
                    )
                )
    return rows


if __name__ == "__main__":
    main()

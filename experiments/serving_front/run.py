"""The gateway's own HTTP server beside uvicorn, on the same application.

python -m experiments.serving_front.run [--workspace DIR] [--quick]    writes results/front.json
"""

from __future__ import annotations

import itertools
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from experiments import command, loops
from experiments.report import Row, print_rows, save
from experiments.servers import Server, gateway
from experiments.serving_limit import ranker
from experiments.turns import in_turns, medians, row
from registry.bundle import open_bundle
from serving.bench.queries import generated, numbers
from serving.bench.traffic import post, rank_body, requests, understand_body

HERE = Path(__file__).parent
QUICK = {"repetitions": 2, "seconds": 0.5, "warmup_seconds": 0.2, "idle_connections": 200}
OURS, THEIRS = "own server", "uvicorn"
PROGRAMS = {OURS: "rankyard", THEIRS: "experiments.serving_front.on_uvicorn"}
HEALTH, HIT, MISS, RANK = "GET /healthz", "understand, kept answer", "understand, distinct queries", "rank, by columns"
_APART = 1_000_000
"""Distinct queries of one stream, before those of the next."""
KEYS = (*loops.KEYS, "server_cpu_us", "mb_ready", "mb_idle", "kb_each", "seconds")


def main() -> None:
    """Measure both servers in turns."""
    parser = command.options(__doc__)
    parser.add_argument("--workspace", type=Path, help="kept, so that models are trained once (default: a new one)")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text()) | (QUICK if options.quick else {})
    with tempfile.TemporaryDirectory(prefix="rankyard-front-") as made:
        workspace = (options.workspace or Path(made)).absolute()
        models = {"intent": str(command.demo_intent(workspace, config["intent"]))}
        models["ranking"] = str(ranker.found_or_trained(workspace, config["ranker"]))
        with ExitStack() as stack:
            servers = {
                name: stack.enter_context(gateway(settings(models), workspace / name, "gateway", program=program))
                for name, program in PROGRAMS.items()
            }
            found = loads(config, servers, Path(models["ranking"]))
        found |= starts(config, workspace, models)
    rows = compared(config, found)
    print_rows(rows)
    if not options.quick:
        details = {"medians": medians(found, KEYS)}
        save(HERE / "results" / "front.json", rows, "python -m experiments.serving_front.run", **details)


def settings(models: dict[str, str]) -> dict[str, Any]:
    """Configure a gateway; one scorer of trees, so that both servers have the same whatever they measure at load."""
    return {"models": models, "runtime": {"scorers": ["onnx"]}}


def loads(config: dict[str, Any], servers: dict[str, Server], ranking: Path) -> dict[str, list[dict[str, Any]]]:
    """Closed loops of every scenario, on both servers in turns."""
    contestants: dict[str, Callable[[], dict[str, Any]]] = {}
    for scenario in (HEALTH, HIT, MISS, RANK):
        for n in config["concurrency"]:
            for name, server in servers.items():
                sent = sent_to(server.url, scenario, ranking, config["list_size"], n * _APART)
                contestants[key(name, scenario, n)] = lambda server=server, sent=sent, n=n: load(
                    config, server, sent, n
                )
    return in_turns(contestants, config["repetitions"])


def load(config: dict[str, Any], server: Server, sent: Iterator[bytes], n: int) -> dict[str, Any]:
    """One closed loop, and what the server's processes spent on each of its requests."""
    seconds, warmup_s = config["seconds"], config["warmup_seconds"]
    return loops.closed_and_cost(server.url, sent, n, seconds, warmup_s, lambda: server.cpu_s)


def sent_to(url: str, scenario: str, ranking: Path, list_size: int, first: int) -> Iterator[bytes]:
    """Requests of one scenario, without end; first: number of the first distinct query."""
    text = generated(0)
    if scenario == HEALTH:
        return itertools.repeat(b"GET /healthz HTTP/1.1\r\nhost: %b\r\n\r\n" % urlsplit(url).netloc.encode())
    if scenario == RANK:
        features = open_bundle(ranking).manifest.features or ()
        return requests(
            post(url, "/v1/rank", rank_body(text, features, (list_size,), form="columns", seed=0)), numbers(0)
        )
    make = post(url, "/v1/understand", understand_body(text))
    return itertools.repeat(make(0)) if scenario == HIT else requests(make, itertools.count(first))


def starts(config: dict[str, Any], workspace: Path, models: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Seconds to ready, memory then, and what open connections take that send nothing."""

    def start(name: str) -> dict[str, Any]:
        with (
            gateway(settings(models), workspace / name, "gateway", program=PROGRAMS[name]) as server,
            ExitStack() as stack,
        ):
            address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
            ready = server.rss_bytes
            for _ in range(config["idle_connections"]):
                stack.enter_context(socket.create_connection(address))
            time.sleep(1)
            idle = server.rss_bytes
            each = (idle - ready) / config["idle_connections"]
            return {
                "seconds": server.seconds_to_ready,
                "mb_ready": ready / 1e6,
                "mb_idle": idle / 1e6,
                "kb_each": each / 1e3,
            }

    return in_turns({name: lambda name=name: start(name) for name in PROGRAMS}, config["repetitions"])


def compared(config: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Ratios of one round each: this server's figure over uvicorn's."""
    rows = []

    def add(data: str, metric: str, ours: str, theirs: str, figure: str) -> None:
        pairs = [(one.get(figure), other.get(figure)) for one, other in zip(found[ours], found[theirs], strict=True)]
        # A round in which the machine stood still and nobody was answered compares nothing; `seeds` counts the others.
        values = [one / other for one, other in pairs if one and other]
        rows.append(row(data, OURS, f"{metric}, times that of uvicorn", values, served_as="float32"))

    for scenario in (HEALTH, HIT, MISS, RANK):
        for n in config["concurrency"]:
            keys = (key(OURS, scenario, n), key(THEIRS, scenario, n))
            for metric, figure in (
                ("requests/s", "throughput_per_s"),
                ("p50", "p50_ms"),
                ("processor time a request", "server_cpu_us"),
            ):
                add(scenario, f"{n} callers: {metric}", *keys, figure)
    n_idle = config["idle_connections"]
    for metric, figure in (
        ("seconds from start to ready", "seconds"),
        ("memory when ready", "mb_ready"),
        (f"memory of each of {n_idle} idle connections", "kb_each"),
    ):
        add("start", metric, OURS, THEIRS, figure)
    return rows


def key(name: str, scenario: str, n: int) -> str:
    """Name a measurement."""
    return f"{name}, {scenario}, {n} callers"


if __name__ == "__main__":
    main()

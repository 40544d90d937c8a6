"""What watching a request takes by itself, with and without tracing: what loops over sockets are too noisy to tell.

python -m experiments.serving_tracing.alone    writes results/alone.json, after results/tracing.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import yaml

from experiments.report import Row, save
from experiments.servers import free_port, serving
from experiments.serving_tracing.run import HERE, HIT, NONE
from experiments.turns import in_turns, median_interval, series
from serving.gateway.config import GatewayConfig, TracingConfig
from serving.gateway.messages import Request
from serving.gateway.observer import open_observer
from serving.gateway.telemetry import Telemetry

REQUESTS, ROUNDS = 20_000, 20
MOST = 0.03
_HEADERS = {b"host": b"localhost:8080", b"content-type": b"application/json", b"content-length": b"30"}


def main() -> None:
    """Measure in turns; as a share of what a kept answer takes of the processor in all."""
    ratio = yaml.safe_load((HERE / "config.yaml").read_text())["ratio"]
    whole_us = json.loads((HERE / "results" / "tracing.json").read_text())["medians"][f"{NONE}, {HIT}"]["server_cpu_us"]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "experiments.serving_tracing.collector", str(port)]
    with serving(command, url, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", Path("/dev/null"), environment={}):
        config = TracingConfig(endpoint=f"{url}/v1/traces", ratio=ratio)
        contestants = {"without": lambda: {"us": watched_us(None)}, "with": lambda: {"us": watched_us(config)}}
        found = in_turns(contestants, ROUNDS)
    pairs = zip(series(found["with"], "us"), series(found["without"], "us"), strict=True)
    added = [(one - other) / whole_us for one, other in pairs]
    low, high = median_interval(added)
    metric = "processor time that tracing adds, share of all that a kept answer takes"
    rows = [
        Row(
            data="watching a request",
            configuration=f"tracing of {ratio:.0%}",
            metric=metric,
            value=round(statistics.median(added), 4),
            low=low,
            high=high,
            seeds=list(range(ROUNDS)),
            seconds=0.0,
            served_as="float32",
            target=MOST,
            at_most=True,
        )
    ]
    us = {name: round(statistics.median(series(figures, "us")), 3) for name, figures in found.items()}
    print(rows[0].value, low, high, us)
    save(HERE / "results" / "alone.json", rows, "python -m experiments.serving_tracing.alone", us=us, whole_us=whole_us)


def watched_us(config: TracingConfig | None) -> float:
    """Processor time of one request's begin and end, its trace's way to the collector included, in every thread."""
    observer = open_observer(GatewayConfig(tracing=config), Telemetry())
    begin_s = time.process_time()
    for _ in range(REQUESTS):
        request = Request(time.monotonic(), "POST", "/v1/understand", _HEADERS)
        observer.begin(request)
        observer.end(request, "/v1/understand", 200)
    observer.close()
    return (time.process_time() - begin_s) / REQUESTS * 1e6


if __name__ == "__main__":
    main()

"""Where texts become tokens: the gateway sends ids, against Triton reading the text.

python -m experiments.triton_tokenizing.run [--intent BUNDLE] [--quick]    writes results/tokenizing.json
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments import command
from experiments.report import Row, print_rows, save
from experiments.triton_tokenizing.ways import IDS, WAYS, Gateway, load, measured, write
from experiments.turns import in_turns, medians, ratios, row, series
from models.model import open_model
from registry.bundle import Bundle, open_bundle
from serving.bench.queries import generated
from serving.triton import server
from serving.triton.http import TritonHttp
from serving.triton.repository import install
from serving.triton.settings import TritonSettings

HERE = Path(__file__).parent
QUICK = {"repetitions": 2, "seconds": 1.5, "warmup_seconds": 0.5}
OURS = "gateway tokenizes and joins"
KEYS = ("throughput_per_s", "p50_ms", "p99_ms", "gateway_cpu_us")


def main() -> None:
    """Measure every way at every number of callers, in turns."""
    parser = command.options(__doc__)
    parser.add_argument("--intent", type=Path, metavar="BUNDLE", help="default: trained here on the demo shop")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text()) | (QUICK if options.quick else {})
    with tempfile.TemporaryDirectory(prefix="rankyard-tokenizing-") as made:
        workspace = Path(made)
        bundle = open_bundle(options.intent or command.demo_intent(workspace, config["intent"]))
        found = measure(bundle, workspace / "triton", config)
    rows = rows_of(found, config, bundle)
    print_rows(rows)
    if not options.quick:
        details = {"medians": medians(found, KEYS), "encode_us": encode_us(bundle)}
        save(HERE / "results" / "tokenizing.json", rows, "python -m experiments.triton_tokenizing.run", **details)


def measure(bundle: Bundle, directory: Path, config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Start a server with every way's models, prove that they answer alike, and put load on each."""
    repository = directory / "repository"
    text = generated(0)
    settings = TritonSettings()
    running = server.up(directory, repository)
    try:
        http = TritonHttp(running.http)
        install(http, repository, IDS, "1", bundle, settings)
        write(repository, bundle, settings)
        load(http)
        prove(bundle, running.grpc, [text(number) for number in range(config["n_proved"])], config)
        numbers = count(config["n_proved"])

        def loop(name: str, n_callers: int) -> dict[str, Any]:
            async def run() -> dict[str, Any]:
                gateway = Gateway(WAYS[name], bundle, running.grpc, config["gateway_workers"], n_callers)
                await gateway.open()
                times = (config["seconds"], config["warmup_seconds"])
                try:
                    return await measured(gateway, map(text, numbers), n_callers, *times)
                finally:
                    await gateway.runtime.close()

            return asyncio.run(run())

        contestants = {
            f"{name}, {n}": lambda name=name, n=n: loop(name, n) for n in config["concurrency"] for name in WAYS
        }
        return in_turns(contestants, config["repetitions"])
    finally:
        server.down(directory)


def prove(bundle: Bundle, url: str, texts: list[str], config: dict[str, Any]) -> None:
    """Expect the same logits of every way, within the bundle's tolerance."""

    async def answers(name: str) -> list[Any]:
        gateway = Gateway(WAYS[name], bundle, url, config["gateway_workers"], len(texts))
        await gateway.open()
        try:
            return [outputs for _, outputs in await asyncio.gather(*map(gateway.ask, texts))]
        finally:
            await gateway.runtime.close()

    wanted = asyncio.run(answers(OURS))
    for name in WAYS:
        for ours, theirs in zip(wanted, asyncio.run(answers(name)), strict=True):
            for output, array in ours.items():
                difference = float(np.abs(array - theirs[output]).max())
                if difference > bundle.manifest.tolerance:
                    raise RuntimeError(f"{name} answers {output} otherwise, by {difference:g}")


def rows_of(found: dict[str, list[dict[str, Any]]], config: dict[str, Any], bundle: Bundle) -> list[Row]:
    """Every other way beside ours, round by round."""
    data = "understand, Triton on the same machine"
    rows = []
    for n in config["concurrency"]:
        ours, callers = found[f"{OURS}, {n}"], "1 caller" if n == 1 else f"{n} callers"
        for name in WAYS:
            theirs = found[f"{name}, {n}"]
            if name == OURS:
                values = series(ours, "throughput_per_s")
                rows.append(row(data, name, f"{callers}, requests/s", values, served_as=bundle.variant))
                values = series(ours, "p50_ms")
                rows.append(row(data, name, f"{callers}, p50 ms", values, served_as=bundle.variant))
                continue
            for key, what in (("throughput_per_s", "throughput"), ("p50_ms", "p50")):
                parts = ratios(series(theirs, key), series(ours, key))
                metric = f"{callers}, {what}, times that of the gateway's tokens"
                rows.append(row(data, name, metric, parts, served_as=bundle.variant))
    return rows


def encode_us(bundle: Bundle) -> float:
    """Microseconds in which the gateway turns a query into tokens: the median of 2,000."""
    model: Any = open_model(bundle.path, bundle.manifest)
    text, times_s = generated(0), []
    for number in range(2_000):
        query = text(number)
        begin_s = time.perf_counter()
        model.encode(query)
        times_s.append(time.perf_counter() - begin_s)
    return round(statistics.median(times_s) * 1e6, 1)


if __name__ == "__main__":
    main()

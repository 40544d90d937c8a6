"""A ranker of text pairs with and without what it knows of a catalogue's titles.

python -m experiments.text_cache.run --data DIR    writes results/crowdflower.json
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments import command, loops
from experiments.report import Row, save
from experiments.servers import Server, exchange, gateway, scraped
from experiments.turns import in_turns, medians, ratios, row, series
from serving.bench.queries import generated, numbers
from serving.bench.traffic import post, requests

HERE = Path(__file__).parent
RANKER = "gateway, in process"
_POOL = 256
_MB = 1e6


def main() -> None:
    """Train, serve twice, load in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds Crowdflower's train and test files")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        titles = _titles(options.data / "train.jsonl", config["titles"])
        catalogue = directory / "products.jsonl"
        catalogue.write_text("".join(json.dumps({"title": title}) + "\n" for title in titles))
        trained = command.train(
            "ranking", "ranking_pairs", options.data, "pairs", directory / "workspace", config["settings"]
        )
        served = {"models": {"ranking": trained["bundle"]}, "deadline_ms": 30_000}
        with gateway({**served, "cache": {"max_text_bytes": 0}}, directory, "without") as without:
            begin_s = time.monotonic()
            with gateway({**served, "catalogue": {"file": str(catalogue)}}, directory, "ready") as ready:
                n_bytes = _wait_for(ready, len(titles))
                prepared_s = time.monotonic() - begin_s
                rows, found = _compared({"without": without, "ready": ready}, titles, config)
    data = f"lists of {config['list_size']} of {len(titles)} titles"
    rows += [
        _figure(data, "MB that the titles take", n_bytes / _MB),
        _figure(data, "seconds until all titles are ready, start included", prepared_s),
    ]
    asked = "python -m experiments.text_cache.run --data DIR"
    save(HERE / "results" / "crowdflower.json", rows, asked, config=config, medians=found)
    for one in rows:
        print(f"{one.metric}: {one.value} [{one.low}, {one.high}]")


def _compared(
    servers: dict[str, Server], titles: list[str], config: dict[str, Any]
) -> tuple[list[Row], dict[str, Any]]:
    data = f"lists of {config['list_size']} of {len(titles)} titles"
    bodies = _bodies(titles, config)
    sent = {name: requests(post(server.url, "/v1/rank", bodies), count()) for name, server in servers.items()}
    n_equal = sum(
        _answer(servers["without"], bodies, n) == _answer(servers["ready"], bodies, n)
        for n in range(config["compared"])
    )

    def closed(name: str, n_callers: int) -> Callable[[], dict[str, Any]]:
        return lambda: loops.closed(
            servers[name].url, sent[name], n_callers, config["seconds"], config["warmup_seconds"]
        )

    callers = (1, config["concurrency"])
    found = in_turns({f"{name}, {n}": closed(name, n) for n in callers for name in servers}, config["repetitions"])
    rows = []
    for n in callers:
        without, ready = found[f"without, {n}"], found[f"ready, {n}"]
        for metric, key in (
            ("times the throughput without a cache", "throughput_per_s"),
            ("p50 as a part of that without a cache", "p50_ms"),
        ):
            values = ratios(series(ready, key), series(without, key))
            rows.append(row(data, RANKER, f"{n} callers, {metric}", values))
    rows.append(
        _figure(
            data, f"part of {config['compared']} answers that are equal byte for byte", n_equal / config["compared"]
        )
    )
    return rows, medians(found, loops.KEYS)


def _bodies(titles: list[str], config: dict[str, Any]) -> Callable[[int], bytes]:
    """Bodies of POST /v1/rank: distinct queries, lists whose titles repeat by Zipf's law, each once in a list."""
    query = generated(0)
    drawn = numbers(0, zipf=config["exponent"], n_distinct=len(titles))
    lists = [json.dumps(_candidates(titles, drawn, config["list_size"])).encode() for _ in range(_POOL)]
    return lambda number: (
        b'{"query":{"text":%b},"candidates":%b}'
        % (
            json.dumps(query(number)).encode(),
            lists[number % _POOL],
        )
    )


def _candidates(titles: list[str], drawn: Iterator[int], size: int) -> dict[str, list[str]]:
    places: dict[int, None] = {}
    while len(places) < size:
        places[next(drawn)] = None
    return {"ids": [str(place) for place in places], "texts": [titles[place] for place in places]}


def _answer(server: Server, bodies: Callable[[int], bytes], number: int) -> bytes:
    status, body = exchange(server.url, post(server.url, "/v1/rank", bodies)(number), timeout_s=30.0)
    assert status == 200, body
    return re.sub(rb'"ms":[0-9.e-]+', b"", body)


def _wait_for(server: Server, n_texts: int) -> float:
    """Wait until so many texts are known; gives what they take, in bytes."""
    while True:
        known = scraped(server.url)
        if known["rankyard_text_cache_texts"] >= n_texts:
            return known["rankyard_text_cache_bytes"]
        time.sleep(0.1)


def _titles(file: Path, n: int) -> list[str]:
    """The first distinct titles, in an order that does not depend on the file's."""
    with file.open() as lines:
        titles = sorted({json.loads(line)["title"] for line in lines})
    return [titles[place] for place in np.random.default_rng(0).permutation(len(titles))[:n]]


def _figure(data: str, metric: str, value: float) -> Row:
    return row(data, RANKER, metric, [value])


if __name__ == "__main__":
    main()

"""Two gateway processes behind one port against one: where the front is the limit, and where the model is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from experiments import loops
from experiments.servers import Server, scraped
from experiments.serving_limit.study import DATA, EMBEDDED, Part, Study
from experiments.turns import in_turns, medians, ratios, row, series
from serving.bench.queries import numbers
from serving.bench.traffic import post, requests, understand_body

_KEPT = "understand, kept answers"
_N_KEPT = 50
_KEEPING_S = 3.0


def processes(study: Study) -> Part:
    """Two processes of one worker each against one of one: throughput, and processor time a request."""
    concurrency = study.config["understand"]["concurrency"]
    with study.gateway("one_worker") as one, study.gateway("two_processes") as two:
        while scraped(two.url)["rankyard_processes"] != 2:
            time.sleep(0.1)
        contestants = {}
        for name, server in (("one", one), ("two", two)):
            kept = _kept(study, server.url)
            loops.closed(server.url, kept, concurrency, _KEEPING_S, 0.0)
            for kind, sent in (("kept", kept), ("distinct", study.queries(server.url))):
                contestants[f"{name}, {kind}"] = lambda server=server, sent=sent: _measured(
                    study, server, sent, concurrency
                )
        found = in_turns(contestants, study.repetitions)
        rss_mb = two.rss_bytes / 1e6
    times = {
        (kind, key): ratios(series(found[f"two, {kind}"], key), series(found[f"one, {kind}"], key))
        for kind in ("kept", "distinct")
        for key in ("throughput_per_s", "cpu_us")
    }
    rows = [
        row(_KEPT, EMBEDDED, "two processes, times the throughput of one", times["kept", "throughput_per_s"]),
        row(
            _KEPT,
            EMBEDDED,
            "two processes, times the processor time a request",
            times["kept", "cpu_us"],
            target=1.1,
            at_most=True,
        ),
        row(
            DATA,
            EMBEDDED,
            "two processes of one worker, times the throughput of one",
            times["distinct", "throughput_per_s"],
        ),
        row(DATA, EMBEDDED, "MB resident of two processes under load", [rss_mb]),
    ]
    return Part(rows, {"medians": medians(found, (*loops.KEYS, "cpu_us"))})


def _kept(study: Study, url: str) -> Iterator[bytes]:
    """Understand requests that come again and again."""
    return requests(post(url, "/v1/understand", understand_body(lambda n: study.text(n % _N_KEPT))), numbers(0))


def _measured(study: Study, server: Server, sent: Iterator[bytes], concurrency: int) -> dict[str, Any]:
    """Measure a closed loop. cpu_us: what the server's processes took for a request, warm-up included."""
    seconds, warmup_s = study.config["seconds"], study.config["warmup_seconds"]
    return loops.closed_and_cost(server.url, sent, concurrency, seconds, warmup_s, lambda: server.cpu_s, "cpu_us")

"""The loops of `rankyard bench`, as studies run them: on any server, with requests of any form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from serving.bench.arrivals import arrivals
from serving.bench.load import Plan, closed_loop, open_loop

KEYS = ("throughput_per_s", "goodput_per_s", "p50_ms", "p95_ms", "p99_ms", "failed", "client_cpu_share")
ENOUGH = 0.99


def closed(url: str, requests: Iterator[bytes], concurrency: int, seconds: float, warmup_s: float) -> dict[str, Any]:
    """Measure a closed loop."""
    return _short(closed_loop(url, requests, Plan(seconds, warmup_s, concurrency)).figures())


def closed_and_cost(
    url: str,
    requests: Iterator[bytes],
    concurrency: int,
    seconds: float,
    warmup_s: float,
    cpu_s: Callable[[], float],
    key: str = "server_cpu_us",
) -> dict[str, Any]:
    """As `closed`; under `key` what a request took, warm-up included, of the processor time that `cpu_s` counts."""
    begin_s = cpu_s()
    found = closed(url, requests, concurrency, seconds, warmup_s)
    n_requests = max(1.0, found["throughput_per_s"] * (seconds + warmup_s))
    return found | {key: 1e6 * (cpu_s() - begin_s) / n_requests}


def goodput(
    url: str, requests: Iterator[bytes], rates: Sequence[float], seconds: float, warmup_s: float, limit_ms: float
) -> dict[str, Any]:
    """Raise the rate of an open loop until fewer than 99 of 100 answers are within the limit; the best goodput before.

    `goodput_per_s` is 0 where not even the lowest rate holds; `points` are all that were tried.
    """
    points, best = [], 0.0
    for rate in rates:
        plan = Plan(seconds, warmup_s, 512, limit_ms=limit_ms, timeout_s=5.0)
        point = _short(open_loop(url, requests, arrivals("poisson", rate, 0), plan).figures())
        points.append({"rate_per_s": round(rate, 1), **point})
        if point["within_limit"] < ENOUGH:
            break
        best = point["goodput_per_s"]
    return {"goodput_per_s": best, "points": points}


def _short(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key != "histogram"}

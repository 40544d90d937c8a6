"""Half to three times of what the gateway can do, asked of it by callers who do not wait.

python -m experiments.serving_overload.run [--intent BUNDLE] [--quick]    writes results/overload.json and overload.png
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from experiments import command, loops
from experiments.report import Row, print_rows, save
from experiments.servers import gateway
from experiments.turns import row
from serving.bench.arrivals import arrivals
from serving.bench.load import Plan, open_loop
from serving.bench.queries import generated
from serving.bench.traffic import post, requests, understand_body

HERE = Path(__file__).parent
QUICK = {"repetitions": 1, "seconds": 2.0, "warmup_seconds": 1.5, "capacity_seconds": 1.0}
EXPECTED = {"429", "504"}
"""How the gateway may leave a request unanswered when too much is asked."""

_SETTLE_S = 0.5

Point = dict[str, Any]


def main() -> None:
    """Find the capacity, offer more, save."""
    parser = command.options(__doc__)
    parser.add_argument("--intent", type=Path, metavar="BUNDLE", help="default: trained here on the demo shop")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text()) | (QUICK if options.quick else {})
    with tempfile.TemporaryDirectory(prefix="rankyard-overload-") as made:
        directory = Path(made)
        intent = (options.intent or command.demo_intent(directory, config["intent"])).absolute()
        parts = [measured(intent, directory, config, deadline_ms) for deadline_ms in config["deadlines_ms"]]
    rows = [one for part in parts for one in rows_of(part, config)]
    print_rows(rows)
    if not options.quick:
        save(HERE / "results" / "overload.json", rows, "python -m experiments.serving_overload.run", parts=parts)
        picture(parts).savefig(HERE / "results" / "overload.png", dpi=120)


def measured(intent: Path, directory: Path, config: Mapping[str, Any], deadline_ms: int) -> dict[str, Any]:
    """Measure every load in rounds, each point beside a capacity of its own: the machine drifts."""
    settings = {**config["gateway"], "models": {"intent": str(intent)}, "deadline_ms": deadline_ms}
    with gateway(settings, directory, f"deadline-{deadline_ms}") as server, prioritized() as is_prioritized:
        body = understand_body(generated(0))
        sent = requests(post(server.url, "/v1/understand", body), count())
        rounds = [_round(server.url, sent, config, deadline_ms, seed) for seed in range(config["repetitions"])]
    return {"deadline_ms": deadline_ms, "client_prioritized": is_prioritized, "rounds": rounds}


def _round(url: str, sent: Iterator[bytes], config: Mapping[str, Any], deadline_ms: int, seed: int) -> dict[str, Any]:
    seconds, warmup_s = config["seconds"], config["warmup_seconds"]
    points: list[Point] = []
    for share in config["shares"]:
        closed = loops.closed(url, sent, config["concurrency"], config["capacity_seconds"], _SETTLE_S)
        capacity = closed["throughput_per_s"]
        plan = Plan(seconds, warmup_s, config["n_connections"], timeout_s=10.0, limit_ms=float(deadline_ms))
        found = open_loop(url, sent, arrivals("poisson", share * capacity, seed), plan).figures()
        found.pop("histogram")
        points.append({"share": share, "capacity_per_s": capacity, "rate_per_s": round(share * capacity, 1), **found})
        print(
            f"  {deadline_ms} ms, {share:g}x of {capacity:.0f}/s: {found['goodput_per_s']:.0f}/s in time, "
            f"p99 {found['p99_ms']} ms, refused p99 {found['refused_p99_ms']} ms, {found['errors']}",
            file=sys.stderr,
            flush=True,
        )
    return {"points": points}


@contextmanager
def prioritized() -> Iterator[bool]:
    """Let this process go before others, where it may; gives whether it does."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, before - 10)
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def rows_of(part: Mapping[str, Any], config: Mapping[str, Any]) -> list[Row]:
    """Turn the rounds of a deadline into rows; each value is a round's, but goodput is that of the rounds' medians.

    The lowest of several points is lower the more the machine drifts between them.
    """
    data = f"understand, distinct queries, deadline {part['deadline_ms']} ms, up to {config['shares'][-1]:g}x"
    rounds = [one["points"] for one in part["rounds"]]
    curves = [[goodput_share(point) for point in points] for points in rounds]
    kept = [kept_share(curve) for curve in curves]
    of_medians = kept_share([statistics.median(shares) for shares in zip(*curves, strict=True)])
    slowest = [max(point["refused_p99_ms"] or 0.0 for point in points) for points in rounds]
    other = [sum(other_failures(point) for point in points) for points in rounds]
    name = "gateway, in process"
    return [
        replace(
            row(data, name, "lowest goodput over the highest, from its load on", kept, target=config["at_least"]),
            value=round(of_medians, 4),
        ),
        row(data, name, "refusals, ms at p99", slowest, target=config["refusal_p99_ms"], at_most=True),
        row(data, name, "refusals without Retry-After, other failures", other, target=0, at_most=True),
    ]


def goodput_share(point: Point) -> float:
    """Goodput as a part of what a closed loop got through just before."""
    return float(point["goodput_per_s"] / point["capacity_per_s"])


def kept_share(goodputs: Sequence[float]) -> float:
    """Of the highest goodput, what the lowest one at its load or above still is; goodputs: by rising load."""
    best = max(goodputs)
    return min(goodputs[goodputs.index(best) :]) / best


def other_failures(point: Point) -> int:
    """Failures that too much load does not excuse."""
    unexpected = sum(n for kind, n in point["errors"].items() if kind not in EXPECTED)
    return int(unexpected + point["refused_without_retry_after"])


def picture(parts: Sequence[Mapping[str, Any]]) -> Any:
    """Goodput over what was offered, and how fast refusals were; a line a deadline, a dot a round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    for part, colour in zip(parts, ("#2b6cb0", "#c05621"), strict=True):
        label = f"deadline {part['deadline_ms']} ms"
        for key, axes, unit in (("goodput_per_s", above, "capacity_per_s"), ("refused_p99_ms", below, None)):
            by_share: dict[float, list[float]] = {}
            for one in part["rounds"]:
                for point in one["points"]:
                    if point[key] is not None:
                        value = point[key] / point[unit] if unit else point[key]
                        by_share.setdefault(point["share"], []).append(value)
                        axes.plot(point["share"], value, ".", color=colour, alpha=0.5)
            shares = sorted(by_share)
            medians = [statistics.median(by_share[share]) for share in shares]
            axes.plot(shares, medians, color=colour, label=label)
    above.plot([0, 1, 3], [0, 1, 1], color="#a0aec0", lw=0.8, label="all that can be done")
    above.set(ylabel="in time, of the capacity", ylim=(0, None))
    above.legend(fontsize=8)
    below.axhline(5, color="#718096", lw=0.8, ls="--")
    below.set(ylabel="429 after, ms at p99", xlabel="offered, of the capacity", xlim=(0, None), ylim=(0, None))
    return figure


if __name__ == "__main__":
    main()

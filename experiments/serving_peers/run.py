"""The gateway beside LitServe, MLServer and BentoML: same ONNX files, same load, one run, each at its best settings.

python -m experiments.serving_peers.run [--intent BUNDLE] [--peers NAME,...] [--quick]    writes results/peers.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from experiments import command, loops
from experiments.report import Row, print_rows, save
from experiments.servers import Server
from experiments.serving_limit import ranker
from experiments.serving_limit.ranking import answered_forms, sent_as
from experiments.serving_limit.run import QUICK
from experiments.serving_limit.study import Study
from experiments.serving_peers.peers import RANK, UNDERSTAND, Peer
from experiments.turns import Figures, in_turns, medians, ratios, row, series
from serving.bench.queries import generated

HERE = Path(__file__).parent
OURS = "gateway"
_CONFIGURATION = "gateway beside its peers"
_FROM = 1_000_000


def main() -> None:
    """Measure."""
    parser = command.options(__doc__)
    parser.add_argument("--intent", type=Path, metavar="BUNDLE", help="default: trained here on the demo shop")
    parser.add_argument("--workspace", type=Path, help="kept, so that models are trained once (default: a new one)")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "rankyard-peers")
    parser.add_argument("--peers", default="litserve,mlserver,bentoml")
    parser.add_argument("--scenarios", default=f"{UNDERSTAND},{RANK}")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    config |= QUICK | {"grid_seconds": 0.4} if options.quick else {}
    with tempfile.TemporaryDirectory(prefix="rankyard-peers-") as made:
        workspace = (options.workspace or Path(made)).absolute()
        options.environments.mkdir(parents=True, exist_ok=True)
        intent = (options.intent or command.demo_intent(workspace, config["intent"])).absolute()
        bundle = ranker.found_or_trained(workspace, config["ranker"])
        study = Study(config, intent, bundle, workspace, options.environments.absolute(), generated(0))
        peers = [Peer(name, study) for name in options.peers.split(",")]
        rows: list[Row] = []
        details: dict[str, Any] = {}
        for scenario in options.scenarios.split(","):
            begin_s = time.perf_counter()
            found, details[scenario] = SCENARIOS[scenario](study, peers)
            rows += found
            print(f"{scenario}: {time.perf_counter() - begin_s:.0f} s", file=sys.stderr)
    print_rows(rows)
    if not options.quick:
        reproduced_by = "python -m experiments.serving_peers.run --intent BUNDLE"
        save(HERE / "results" / "peers.json", rows, reproduced_by, scenarios=details)


def understand(study: Study, peers: list[Peer]) -> tuple[list[Row], dict[str, Any]]:
    """Closed loops of many callers and of one, then open loops up to the limit of p99."""
    concurrency = study.config["understand"]["concurrency"]
    tools = {OURS: Tool(study.config["ours"][UNDERSTAND], partial(study.gateway, "shipped"), study.queries)}
    best, tried = _best(study, tools | _theirs(study, peers, UNDERSTAND), concurrency)
    with ExitStack() as stack:
        gateway = stack.enter_context(study.gateway("shipped", **best[OURS]))
        streams = {OURS: (gateway, study.queries(gateway.url))}
        for peer in peers:
            server = stack.enter_context(peer.start(UNDERSTAND, best[peer.name]))
            streams[peer.name] = (server, peer.sent(UNDERSTAND, server.url, first=_FROM))
        many = _closed(study, streams, concurrency)
        one = _closed(study, streams, 1)
        rises = _rises(study, streams, many)
    fastest = _highest(many, "throughput_per_s")
    steadiest = min((peer.name for peer in peers), key=lambda name: _median(many[name], "p99_ms"))
    best_open = _highest(rises, "goodput_per_s")
    ours = {key: series(many[OURS], key) for key in ("throughput_per_s", "p99_ms")}
    data, callers = "understand, distinct queries", f"{concurrency} callers"
    rows = [
        row(
            data,
            _CONFIGURATION,
            f"{callers}, times the throughput of {fastest}",
            ratios(ours["throughput_per_s"], series(many[fastest], "throughput_per_s")),
            target=1.75,
        ),
        row(
            data,
            _CONFIGURATION,
            f"{callers}, p99 as a part of that of {fastest}",
            ratios(ours["p99_ms"], series(many[fastest], "p99_ms")),
            target=0.5,
            at_most=True,
        ),
    ]
    theirs = _median(rises[best_open], "goodput_per_s")
    if theirs:
        # Of one round a peer's goodput may be 0, so all rounds of the gateway stand against its median.
        times = [value / theirs for value in series(rises[OURS], "goodput_per_s")]
        metric = f"independent callers, times the goodput of {best_open} at a p99 of {_limit_ms(study)} ms"
        rows.append(row(data, _CONFIGURATION, metric, times, target=2))
    found = {"many": many, "one": one, "open": rises}
    shown = {name: medians(one_, loops.KEYS) for name, one_ in found.items()}
    return rows, {"settings": best, "grid": tried, "lowest_p99": steadiest, **shown}


def rank(study: Study, peers: list[Peer]) -> tuple[list[Row], dict[str, Any]]:
    """Every form of the gateway against every peer's own."""
    settings = study.config["rank"]
    start = partial(study.gateway, "shipped", models={"ranking": str(study.ranker)})
    ours = Tool(study.config["ours"][RANK], start, lambda url: sent_as(study, url, settings["forms"][0]))
    best, tried = _best(study, {OURS: ours} | _theirs(study, peers, RANK), settings["concurrency"])
    with ExitStack() as stack:
        gateway = stack.enter_context(start(**best[OURS]))
        streams = {form: (gateway, sent) for form, sent in answered_forms(study, gateway.url).items()}
        for peer in peers:
            server = stack.enter_context(peer.start(RANK, best[peer.name]))
            streams[peer.name] = (server, peer.sent(RANK, server.url, first=_FROM))
        many = _closed(study, streams, settings["concurrency"])
        one = _closed(study, streams, 1)
    data = f"rank, {settings['list_size']} x {study.config['ranker']['features']} by value"
    rows = [
        row(
            data,
            _CONFIGURATION,
            f"{settings['concurrency']} callers, by {form}, times the throughput of {name}",
            ratios(series(many[form], "throughput_per_s"), series(many[name], "throughput_per_s")),
            target=target if name == "litserve" else None,
            served_as="float32",
        )
        for form, target in (("rows", 5), ("columns", 7), ("binary", 10))
        for name in best
        if form in many and name != OURS
    ]
    shown = {"many": medians(many, loops.KEYS), "one": medians(one, loops.KEYS)}
    return rows, {"settings": best, "grid": tried, **shown}


SCENARIOS: Mapping[str, Callable[[Study, list[Peer]], tuple[list[Row], dict[str, Any]]]] = {
    UNDERSTAND: understand,
    RANK: rank,
}


@dataclass(frozen=True, slots=True)
class Tool:
    """The settings of a server that are tried, how it is started with one of them, and what it is sent by its URL."""

    grid: Sequence[dict[str, Any]]
    start: Callable[..., AbstractContextManager[Server]]
    sent: Callable[[str], Iterator[bytes]]


def _theirs(study: Study, peers: list[Peer], scenario: str) -> dict[str, Tool]:
    return {
        peer.name: Tool(
            study.config["peers"][peer.name][scenario],
            lambda peer=peer, **settings: peer.start(scenario, settings),
            partial(peer.sent, scenario),
        )
        for peer in peers
    }


def _best(
    study: Study, tools: Mapping[str, Tool], concurrency: int
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Figures]]]:
    """Try every setting of each tool under load; the one with the highest throughput runs beside the others."""
    best, tried = {}, {}
    times = (study.config["grid_seconds"], study.config["warmup_seconds"])
    for name, tool in tools.items():
        found = []
        for settings in tool.grid:
            try:
                with tool.start(**settings) as server:
                    figures = loops.closed(server.url, tool.sent(server.url), concurrency, *times)
            except RuntimeError as error:  # settings that do not run on this machine are said, and lost
                figures = {"throughput_per_s": 0.0, "p99_ms": None, "failed": 0, "error": str(error)[-500:]}
            print(f"  {name} {settings}: {figures['throughput_per_s']}/s, {figures['failed']} failed", file=sys.stderr)
            found.append({"settings": settings} | {key: figures.get(key) for key in (*loops.KEYS, "error")})
        tried[name] = found
        best[name] = max(found, key=lambda one: one["throughput_per_s"])["settings"]
    return best, tried


Streams = Mapping[str, tuple[Server, Iterator[bytes]]]
"""Who is asked, and with what."""


def _closed(study: Study, streams: Streams, concurrency: int) -> dict[str, list[Figures]]:
    contestants = {
        name: _alone(streams, name, lambda url, sent: study.closed(url, sent, concurrency)) for name in streams
    }
    return in_turns(contestants, study.repetitions)


def _alone(streams: Streams, name: str, measure: Callable[[str, Iterator[bytes]], Figures]) -> Callable[[], Figures]:
    """Measure one while the others are halted: servers that nobody asks look for work all the same."""

    def measured() -> Figures:
        server, sent = streams[name]
        with ExitStack() as stack:
            for other in {id(one): one for one, _ in streams.values() if one is not server}.values():
                stack.enter_context(other.halted())
            return measure(server.url, sent)

    return measured


def _rises(study: Study, streams: Streams, many: Mapping[str, list[Figures]]) -> dict[str, list[Figures]]:
    """Rates are parts of what each reached in a closed loop."""
    times = (study.config["seconds"], study.config["warmup_seconds"], _limit_ms(study))
    contestants = {}
    for name in streams:
        rates = [_median(many[name], "throughput_per_s") * share for share in study.config["open_loop"]["shares"]]
        contestants[name] = _alone(
            streams, name, lambda url, sent, rates=rates: loops.goodput(url, sent, rates, *times)
        )
    return in_turns(contestants, study.repetitions)


def _limit_ms(study: Study) -> float:
    return float(study.config["open_loop"]["p99_limit_ms"])


def _highest(found: Mapping[str, list[Figures]], key: str) -> str:
    return max((name for name in found if name != OURS), key=lambda name: _median(found[name], key))


def _median(found: list[Figures], key: str) -> float:
    values = sorted(series(found, key))
    return values[len(values) // 2]


if __name__ == "__main__":
    main()

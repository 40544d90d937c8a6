"""Understanding queries: against the model alone, by open load, with repeated queries, from start to ready."""

from __future__ import annotations

from itertools import count
from typing import Any

from experiments import loops
from experiments.servers import exchange, scraped
from experiments.serving_limit.raw import Arrangement, Raw, arrangements
from experiments.serving_limit.study import DATA, EMBEDDED, Part, Study
from experiments.turns import in_turns, medians, ratios, row, series
from serving.bench.queries import numbers
from serving.bench.traffic import post, requests, understand_body

_APART = 5_000_000
_PAUSE_S = 1e-3
"""What a caller and the way there take between two requests of a closed loop."""


def against_raw(study: Study) -> Part:
    """Throughput at 32 callers against the best that this process can do alone; the latency of a lone caller."""
    raw, texts = Raw(study.intent), map(study.text, count(_APART))
    settings, seconds = study.config["raw"], study.config["seconds"]
    tried = {
        one: raw.run(texts, one, settings["seconds"]) for one in arrangements(study.n_cores, settings["batch_sizes"])
    }
    best = max(tried, key=lambda one: tried[one]["texts_per_s"])
    single = min(
        (one for one in tried if one.batch_size == 1 and one.n_workers == 1), key=lambda one: tried[one]["p50_ms"]
    )
    concurrency = study.config["understand"]["concurrency"]
    with study.gateway("shipped") as server:
        sent = study.queries(server.url)
        found = in_turns(
            {
                "raw, best": lambda: raw.run(texts, best, seconds),
                "raw, one by one": lambda: raw.run(texts, single, seconds),
                "raw, with pauses": lambda: raw.run(texts, single, seconds, _PAUSE_S),
                "gateway, 1": lambda: study.closed(server.url, sent, 1),
                "gateway, many": lambda: study.closed(server.url, sent, concurrency),
            },
            study.repetitions,
        )
        rss_mb = server.rss_bytes / 1e6
        kept_mb = scraped(server.url)["rankyard_cache_bytes"] / 1e6
    parts = ratios(series(found["gateway, many"], "throughput_per_s"), series(found["raw, best"], "texts_per_s"))
    lone = series(found["gateway, 1"], "p50_ms")
    added, added_to_paused = (
        [one - other for one, other in zip(lone, series(found[name], "p50_ms"), strict=True)]
        for name in ("raw, one by one", "raw, with pauses")
    )
    rows = [
        row(DATA, EMBEDDED, f"{concurrency} callers, part of the throughput of {best} in process", parts, target=0.95),
        row(DATA, EMBEDDED, "1 caller, ms added at p50 to the model alone", added, target=0.4, at_most=True),
        row(DATA, EMBEDDED, "1 caller, ms added at p50 to the model alone, called 1 ms apart", added_to_paused),
        row(
            DATA, EMBEDDED, "MB resident under load, without kept answers", [rss_mb - kept_mb], target=180, at_most=True
        ),
        row(DATA, EMBEDDED, "MB of kept answers, of 67 at most", [kept_mb]),
    ]
    keys = (*loops.KEYS, "texts_per_s")
    return Part(rows, {"medians": medians(found, keys), "arrangements": _table(tried), "best": str(best)})


def open_load(study: Study) -> Part:
    """Raise the rate of independent callers until the limit of p99 breaks."""
    settings = study.config["open_loop"]
    concurrency = study.config["understand"]["concurrency"]
    with study.gateway("shipped") as server:
        sent = study.queries(server.url)
        most = study.closed(server.url, sent, concurrency)["throughput_per_s"]
        rates = [most * share for share in settings["shares"]]
        times = (study.config["seconds"], study.config["warmup_seconds"], settings["p99_limit_ms"])
        found = in_turns({"gateway": lambda: loops.goodput(server.url, sent, rates, *times)}, study.repetitions)
    parts = [one / most for one in series(found["gateway"], "goodput_per_s")]
    metric = f"goodput at a p99 of {settings['p99_limit_ms']} ms, part of the throughput of {concurrency} callers"
    row_ = row("understand, independent callers", EMBEDDED, metric, parts)
    return Part([row_], {"closed_loop_per_s": most, "runs": found["gateway"]})


def repeated(study: Study) -> Part:
    """Zipf traffic with and without cache and single-flight; an answer from the cache is the answer of the model."""
    settings = study.config["zipf"]
    with study.gateway("shipped") as cached, study.gateway("without_cache") as plain:

        def sent(url: str) -> Any:
            make = post(url, "/v1/understand", understand_body(study.text))
            drawn = numbers(0, zipf=settings["exponent"], n_distinct=settings["n_distinct"])
            return requests(make, drawn)

        streams = {"cache": (cached.url, sent(cached.url)), "no cache": (plain.url, sent(plain.url))}
        n_answered = 0.0
        while n_answered < settings["n_warmup"]:
            n_answered += study.n_answered(study.closed(*streams["cache"], settings["concurrency"]))
        contestants = {
            name: lambda url=url, stream=stream: study.closed(url, stream, settings["concurrency"])
            for name, (url, stream) in streams.items()
        }
        found = in_turns(contestants, study.repetitions)
        is_same = all(_is_same(cached.url, study.text(_APART + number)) for number in range(50))
    times = ratios(series(found["cache"], "throughput_per_s"), series(found["no cache"], "throughput_per_s"))
    name = f"understand, Zipf {settings['exponent']:g} over {settings['n_distinct']:,} queries"
    rows = [
        row(name, EMBEDDED, "times the throughput without cache and single-flight", times, target=5),
        row(name, EMBEDDED, "part of 50 hits equal to their misses byte for byte", [float(is_same)], target=1),
    ]
    return Part(rows, {"medians": medians(found, loops.KEYS)})


def starting(study: Study) -> Part:
    """Seconds from the command to the first answer to /readyz, and memory before any load."""
    seconds, rss_mb = [], []
    for _ in range(study.repetitions):
        with study.gateway("shipped") as server:
            seconds.append(server.seconds_to_ready)
            rss_mb.append(server.rss_bytes / 1e6)
    return Part(
        [
            row("one int8 intent model", EMBEDDED, "seconds from start to ready", seconds, target=2.0, at_most=True),
            row("one int8 intent model", EMBEDDED, "MB resident when ready", rss_mb, target=180, at_most=True),
        ]
    )


def workers(study: Study) -> Part:
    """Two workers of one thread against one, on queries and on texts whose model is nearly all of the work.

    With queries the second core is not idle beside one worker: HTTP, tokens and the callers take a third of it.
    """
    concurrency = study.config["understand"]["concurrency"]
    joined = study.config["workers"]["joined"]

    def long_text(number: int) -> str:
        return " ".join(study.text(_APART + number * joined + place) for place in range(joined))

    with study.gateway("one_worker") as one, study.gateway("two_workers") as two:
        servers = {"one": one, "two": two}
        streams = {name: study.queries(server.url) for name, server in servers.items()}
        long_streams = {name: study.queries(server.url, text=long_text) for name, server in servers.items()}
        contestants = {
            f"{name}, {texts}": lambda url=server.url, sent=sent[name]: study.closed(url, sent, concurrency)
            for texts, sent in (("queries", streams), ("long texts", long_streams))
            for name, server in servers.items()
        }
        found = in_turns(contestants, study.repetitions)
    rows = []
    for texts, data, target in (
        ("queries", DATA, None),
        ("long texts", f"understand, texts of {joined} queries", 1.8),
    ):
        one_per_s, two_per_s = (series(found[f"{name}, {texts}"], "throughput_per_s") for name in servers)
        times = ratios(two_per_s, one_per_s)
        rows.append(row(data, EMBEDDED, "two workers, times the throughput of one", times, target=target))
    return Part(rows, {"medians": medians(found, loops.KEYS)})


def _is_same(url: str, query: str) -> bool:
    """Ask twice: the first answer comes from the model, the second from the cache."""
    request = post(url, "/v1/understand", understand_body(lambda _: query))(0)
    first, second = exchange(url, request), exchange(url, request)
    return first == second and first[0] == 200


def _table(tried: dict[Arrangement, dict[str, float]]) -> dict[str, dict[str, float]]:
    ordered = sorted(tried, key=lambda one: -tried[one]["texts_per_s"])
    return {str(one): {key: round(value, 2) for key, value in tried[one].items()} for one in ordered}

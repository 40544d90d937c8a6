"""One run of `rankyard bench`: look at the gateway, make the traffic, load it, say what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from models.errors import InputError
from serving.bench import files, queries, traffic
from serving.bench.arrivals import arrivals
from serving.bench.load import Plan, closed_loop, open_loop
from serving.bench.settings import Settings
from serving.bench.tables import comparison, figures_table
from serving.client import Client
from serving.exchange import DEADLINE_HEADER
from serving.gateway import wire

Result = dict[str, Any]
Say = Callable[[str], None]

_ENOUGH = 0.99
"""Share of the requests that must be answered within the limit: that is what a p99 limit says."""
_DRAIN_S = 10.0
_FIRST_MS = 20_000.0
"""How long the requests before the load may take: a cold gateway may have to import what reads them."""
_OWN_HEADERS = ("host", "content-length", DEADLINE_HEADER)
"""Headers that the client says itself."""


def bench(settings: Settings, say: Say) -> Result:
    """Load a gateway as asked; gives the result, with `text` for people.

    InputError where the gateway cannot be asked so, or a stored result is of another load; UnavailableError without a
    gateway.
    """
    before = files.earlier(settings.compare, settings.load()) if settings.compare else None
    files.expect_writable(settings.out, settings.picture)
    models = _served(settings)
    make = _make(settings)
    _expect_answer(settings, make)
    requests = traffic.requests(make, queries.numbers(settings.seed, zipf=settings.zipf, n_distinct=settings.distinct))
    points = []
    for rate in settings.rates or (settings.rate,):
        points.append(_point(settings, requests, rate))
        if settings.is_sweep:
            say(f"{rate:g}/s offered: {points[-1]['throughput_per_s']:.0f}/s, p99 {points[-1]['p99_ms']} ms")
    result = _result(settings, models, points)
    files.save(settings, result, before)
    text = figures_table(result)
    return {**result, "text": f"{text}\n\n{comparison(before, result)}" if before else text}


def holds(point: Result) -> bool:
    """Whether 99 of 100 requests were answered within the limit."""
    return bool(point["within_limit"] >= _ENOUGH)


def _result(settings: Settings, models: list[str], points: list[Result]) -> Result:
    """The best point stands at the top: the highest rate that holds the limit, else the lowest rate."""
    good = [point for point in points if holds(point)]
    best = good[-1] if good else points[0]
    top = {"scenario": settings.scenario, "url": settings.url, "models": models, "load": settings.load(), **best}
    if not settings.is_sweep:
        return top
    return {**top, "best_goodput_per_s": best["goodput_per_s"] if good else 0.0, "points": points}


def _point(settings: Settings, requests: Iterator[bytes], rate: float | None) -> Result:
    n_connections = settings.concurrency if rate is None else settings.connections
    plan = Plan(
        settings.seconds, settings.warmup_seconds, n_connections, _DRAIN_S, settings.p99_limit_ms, settings.ca_file
    )
    if rate is None:
        record = closed_loop(settings.url, requests, plan)
        return {**record.figures(), **record.corrected()}
    moments = arrivals(settings.arrivals, rate, settings.seed)
    return {"rate_per_s": rate, **open_loop(settings.url, requests, moments, plan).figures()}


def _client(settings: Settings) -> Client:
    return Client(settings.url, deadline_ms=_FIRST_MS, ca_file=settings.ca_file)


def _served(settings: Settings) -> list[str]:
    """Give the models that will answer."""
    with _client(settings) as client:
        return [model.ref for model in client.models()]


def _make(settings: Settings) -> traffic.Make:
    lines = files.lines(settings.queries) if settings.queries else None
    text = queries.of_file(lines, settings.seed) if lines else queries.generated(settings.seed)
    headers = [] if settings.deadline_ms is None else [(DEADLINE_HEADER, f"{settings.deadline_ms:g}")]
    understand = traffic.post(settings.url, "/v1/understand", traffic.understand_body(text), headers)
    if not settings.is_ranking:
        return understand
    body = traffic.rank_body(
        text,
        _features(settings) if settings.features is None else settings.features,
        settings.list_sizes,
        form=settings.form,
        seed=settings.seed,
        top_k=settings.top_k,
        with_texts=settings.texts,
    )
    model = _ranker(settings) if settings.is_binary else ""
    rank = traffic.rank(settings.url, body, settings.form, model=model, headers=headers)
    return traffic.mixed(understand, rank, settings.rank_share) if settings.is_mixed else rank


def _ranker(settings: Settings) -> str:
    """Ask the gateway for the name of its only ranker."""
    with _client(settings) as client:
        names = [model.ref.split("/")[0] for model in client.models() if "ranking" in model.answers]
    if len(names) > 1:
        raise InputError(
            f"--form binary asks one ranker by itself, {settings.url} serves {', '.join(names)} in phases; "
            "choose another form"
        )
    return names[0] if names else "none"


def _features(settings: Settings) -> tuple[str, ...]:
    """Ask the gateway which features its ranking model reads."""
    candidate = wire.Candidate("p0", text="red shoes" if settings.texts else None)
    with _client(settings) as client:
        answer = client.rank(wire.RankRequest([candidate], wire.Query("red shoes"), explain="values"))
    return tuple(answer.explanations.get("p0", ()))


def _expect_answer(settings: Settings, make: traffic.Make) -> None:
    """Send one request of each kind through the client first: a refusal is then said in the gateway's own words."""
    kinds = {(found := traffic.parts(make(number)))[0]: found for number in range(64)}
    prefix = urlsplit(settings.url).path.rstrip("/")
    with _client(settings) as client:
        for path, headers, body in kinds.values():
            sent = [(name, value) for name, value in headers.items() if name not in _OWN_HEADERS]
            client.post(path.removeprefix(prefix), body, sent)

"""HTTP: bytes into requests, answers into bytes, and which path asks what.

What needs no model is answered at once; the rest is given back as a coroutine, which the server makes a task of.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from models.answers import Understanding
from models.errors import InputError, NotFoundError, OverloadedError, RankyardError, UnavailableError
from serving.gateway import arrow, batcher, encoding, openapi, telemetry, wire
from serving.gateway.batcher import Priority
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane
from serving.gateway.errors import FAILED, MethodError, quoted
from serving.gateway.flow import Place
from serving.gateway.messages import DEADLINE_HEADER, Answer, Ask, Request, Work
from serving.gateway.observer import Observer
from serving.gateway.open_inference import routes
from serving.gateway.telemetry import Telemetry
from serving.gateway.understand import Places
from serving.gateway.webhook import Webhook

PRIORITY_HEADER = b"x-priority"

_HUNG_UP = 499
"""What nginx logs for a caller that did not wait; never sent."""
_RETRY_AFTER_S = 1.0
"""What a caller is told to wait where nothing better is known."""

_log = logging.getLogger("rankyard.gateway")


Give = Callable[[], Answer | Coroutine[Any, Any, Answer]]
"""How a route answers that no model is needed for."""


class App:
    """The application. It answers 503 until `dataplane` is set; `is_draining` makes it unready."""

    def __init__(self, config: GatewayConfig, measured: Telemetry, observer: Observer) -> None:
        self.dataplane: Dataplane | None = None
        self.is_draining = False
        self.webhook: Webhook | None = None
        self._has_arrow = False
        self.telemetry = measured
        self.metrics: Give = lambda: Answer(measured.exposition(), content_type=telemetry.CONTENT_TYPE.encode())
        """Answers /metrics."""
        self._config = config
        self._observer = observer
        self._inference = routes.Routes(config, self.opened, self._ready)
        self._posts: dict[str, Ask] = {
            "/v1/understand": self._understand,
            "/v1/rank": self._rank,
            "/v1/webhooks/mlflow": self._webhook,
        }
        self._gets: dict[str, Give] = {
            "/healthz": lambda: Answer(wire.encode(wire.StatusAnswer("ok"))),
            "/readyz": self._ready,
            "/metrics": lambda: self.metrics(),
            "/v1/models": self._models,
            "/openapi.json": lambda: Answer(openapi.document()),
            "/docs": lambda: Answer(*openapi.page("index.html")),
            **{f"/docs/{name}": _asset(name) for name in openapi.ASSETS},
        }

    def allowed_s(self, request: Request) -> float:
        """Seconds that a request may take: what it says, or the configured time where that is nothing to go by."""
        try:
            return self._deadline_ms(request) / 1e3
        except InputError:
            return self._config.deadline_ms / 1e3

    def answer(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        """Answer at once, or give the coroutine that does. Whatever happens, the caller gets JSON and no traceback."""
        self._observer.begin(request)
        try:
            found = self._begin(request) if request.fault is None else _refusal(request.fault, request)
        except Exception as error:
            found = _refusal(error, request)
        return self._ended(request, found) if isinstance(found, Answer) else self._work(request, found)

    def _begin(self, request: Request) -> Answer | Work | Coroutine[Any, Any, Answer]:
        ask = self._ask(request.path)
        if ask is None or request.method != "POST":
            return self._give(request)
        if coding := request.headers.get(b"content-encoding"):
            request.body = encoding.decoded(request.body, coding, self._config.limits.max_body_bytes)
        # The task that does the work inherits it.
        batcher.priority.set(priority_of(request))
        return ask(request, request.begun_s + self._deadline_ms(request) / 1e3)

    async def _work(self, request: Request, work: Work | Coroutine[Any, Any, Answer]) -> Answer:
        try:
            if callable(work):
                dataplane = self.opened()
                with dataplane.in_use:
                    answer = await work(dataplane)
            else:
                answer = await work
        except asyncio.CancelledError:
            stopped = UnavailableError("this gateway stopped before the answer was there; ask another one")
            answer = _refusal(stopped, request)
        except Exception as error:
            answer = _refusal(error, request)
        return self._ended(request, answer)

    def _ended(self, request: Request, answer: Answer) -> Answer:
        status = _HUNG_UP if request.is_given_up else answer.status
        self._observer.end(request, self._route(request.path), status)
        return answer

    def _understand(self, request: Request, deadline_s: float) -> Answer | Work | Coroutine[Any, Any, Answer]:
        asked = wire.decode(request.body, wire.understand_decoder)
        if (asked.query is None) == (asked.queries is None):
            found = "neither" if asked.query is None else "both"
            raise InputError(
                f"a request must have either query or queries, got {found}; send one of them", field="query"
            )
        if asked.queries is not None:
            return partial(_understand_several, asked.queries, deadline_s)
        dataplane = self.opened()
        begun = dataplane.begin(asked.query, deadline_s)
        if isinstance(begun, Understanding):
            return Answer(wire.encode(begun))
        return _understand_one(asked.query, deadline_s, begun, dataplane)

    def _rank(self, request: Request, deadline_s: float) -> Coroutine[Any, Any, Answer]:
        dataplane = self.opened()
        return self._ranked(request, deadline_s, dataplane, dataplane.admit_ranking(deadline_s))

    async def _ranked(self, request: Request, deadline_s: float, dataplane: Dataplane, place: Place) -> Answer:
        with dataplane.in_use, place:
            kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            is_arrow = kind == arrow.CONTENT_TYPE
            if is_arrow and not self._has_arrow:
                await asyncio.to_thread(arrow.prepare)
                self._has_arrow = True
            asked = dataplane.reader.read(request.body, is_arrow=is_arrow)
            try:
                ranking = await dataplane.rank(
                    asked.request, top_k=asked.top_k, explain=asked.explain, deadline_s=deadline_s, place=place
                )
            except InputError as error:
                error.field = asked.path(error.field)
                raise
            return Answer(wire.encode(wire.rank_answer(ranking)))

    def _webhook(self, request: Request, _deadline_s: float) -> Answer:
        if self.webhook is None:
            raise NotFoundError("a webhook must be configured to be heard, none is; set webhook.secret_file")
        return self.webhook.receive(request)

    def _ask(self, path: str) -> Ask | None:
        ask = self._posts.get(path)
        return self._inference.post if ask is None and self._inference.method(path) == "POST" else ask

    def _route(self, path: str) -> str:
        """The path without names, of which there may be any number."""
        return path if path in self._posts or path in self._gets else self._inference.name(path) or "other"

    def _give(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        path, method = request.path, request.method
        give = self._gets.get(path)
        if self._inference.method(path) == "GET":
            give = partial(self._inference.get, path)
        if give is not None and method in ("GET", "HEAD"):
            return give()
        if give is None and self._ask(path) is None:
            raise NotFoundError(f"a path must be one of those in /docs, got {path[:100]}; correct it")
        allowed = "GET, HEAD" if give is not None else "POST"
        refusal = _refusal(MethodError(f"{path} must be called by {allowed}, got {method[:20]}; use that"), request)
        return Answer(refusal.body, refusal.status, headers=[(b"allow", allowed.encode())])

    @property
    def is_ready(self) -> bool:
        """Whether requests may come."""
        return self.dataplane is not None and not self.is_draining

    def _ready(self) -> Answer:
        if self.is_draining:
            raise UnavailableError("this gateway must be ready to answer, it is stopping; ask another one")
        self.opened()
        return Answer(wire.encode(wire.StatusAnswer("ready")))

    def _models(self) -> Answer:
        roles = self.opened().roles
        models = []
        for ref, served in roles.models.items():
            variant = self._config.runtime.variant or served.bundle.variant
            family = served.bundle.manifest.family
            models.append(wire.ModelAnswer(ref, family, served.bundle.digest, variant, roles.answers(ref)))
        return Answer(wire.encode(wire.ModelsAnswer(models)))

    def opened(self) -> Dataplane:
        """Give the models that are served; UnavailableError while there are none."""
        if self.dataplane is None:
            raise UnavailableError("this gateway must be ready to answer, it is still starting; ask again")
        return self.dataplane

    def _deadline_ms(self, request: Request) -> float:
        told_ms = deadline_ms_of(request, self._config.max_deadline_ms)
        return self._config.deadline_ms if told_ms is None else told_ms


async def _understand_one(query: str | None, deadline_s: float, places: Places, dataplane: Dataplane) -> Answer:
    with dataplane.in_use:
        return Answer(wire.encode(await dataplane.understand(query, deadline_s, places)))


async def _understand_several(queries: list[Any], deadline_s: float, dataplane: Dataplane) -> Answer:
    results = await dataplane.understand_several(queries, deadline_s)
    return Answer(wire.encode(wire.UnderstandAnswers([_result(result) for result in results])))


def priority_of(request: Request) -> Priority:
    """How urgent a request calls itself; InputError for what is no priority."""
    value = request.headers.get(PRIORITY_HEADER)
    if value is None or value == b"interactive":
        return "interactive"
    if value == b"bulk":
        return "bulk"
    raise InputError(
        f"x-priority must be {' or '.join(batcher.PRIORITIES)}, got {quoted(value)}; correct it or leave it out",
        field="x-priority",
    )


def deadline_ms_of(request: Request, most_ms: float) -> float | None:
    """How long a request says that it may take, None where it does not; InputError for what is no such time."""
    value = request.headers.get(DEADLINE_HEADER)
    if value is None:
        return None
    try:
        deadline_ms = float(value)
    except ValueError:
        deadline_ms = math.nan
    if not 0 < deadline_ms <= most_ms:
        raise InputError(
            f"x-deadline-ms must be a number above 0 and up to {most_ms:g}, got {quoted(value)}; "
            "correct it or leave it out",
            field="x-deadline-ms",
        )
    return deadline_ms


def _asset(name: str) -> Give:
    return lambda: Answer(*openapi.page(name), headers=[(b"cache-control", b"max-age=86400")])


def _result(result: Understanding | RankyardError) -> Understanding | wire.ErrorAnswer:
    return _error(result) if isinstance(result, RankyardError) else result


def _error(error: RankyardError) -> wire.ErrorAnswer:
    return wire.ErrorAnswer(wire.ErrorBody(error.code, error.message, error.field))


def _refusal(error: Exception, request: Request) -> Answer:
    if not isinstance(error, RankyardError):
        _log.error("a request failed", exc_info=error)
        error = RankyardError(FAILED)
    headers = []
    if error.http_status in (429, 503):
        wait_s = error.retry_after_s if isinstance(error, OverloadedError) else _RETRY_AFTER_S
        headers.append((b"retry-after", str(max(1, math.ceil(wait_s))).encode()))
    if request.path.startswith("/v2"):
        return Answer(*routes.refusal(error), headers=headers)
    return Answer(wire.encode(_error(error)), error.http_status, headers=headers)

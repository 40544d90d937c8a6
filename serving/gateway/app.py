"""HTTP: bytes into requests, answers into bytes, and which path asks what.

A bare ASGI application: a framework's router and request object cost more than all the rest of this file.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from models.answers import Understanding
from models.errors import InputError, NotFoundError, OverloadedError, RankyardError, TooLargeError, UnavailableError
from serving.gateway import arrow, inference, openapi, telemetry, wire
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane
from serving.gateway.errors import MethodError, SlowBodyError
from serving.gateway.telemetry import Telemetry

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

DEADLINE_HEADER = b"x-deadline-ms"

_MODEL_PATH = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<what>/infer|/ready)?")
_JSON = b"application/json"
_HUNG_UP = 499
"""What nginx logs for a caller that did not wait; never sent."""
_RETRY_AFTER_S = 1.0
"""What a caller is told to wait where nothing better is known."""
_DISCARDED_BYTES = 16 * 1024 * 1024
"""How much of a body beyond the limit is still read: a client that sends before it reads then sees the answer."""


class _HangupError(Exception):
    """The caller is gone: there is nobody to answer."""


_log = logging.getLogger("rankyard.gateway")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `should_close` ends the connection after it."""

    body: bytes
    status: int = 200
    content_type: bytes = _JSON
    headers: Headers = field(default_factory=list)
    should_close: bool = False


Ask = Callable[[bytes, Headers, float], Awaitable[Answer]]
Give = Callable[[], Answer]


class App:
    """The ASGI application. It answers 503 until `dataplane` is set; `is_draining` makes it unready."""

    def __init__(self, config: GatewayConfig, measured: Telemetry) -> None:
        self.dataplane: Dataplane | None = None
        self.is_draining = False
        self._config = config
        self._telemetry = measured
        self._posts: dict[str, Ask] = {"/v1/understand": self._understand, "/v1/rank": self._rank}
        self._gets: dict[str, Give] = {
            "/healthz": lambda: Answer(wire.encode(wire.StatusAnswer("ok"))),
            "/readyz": self._ready,
            "/metrics": lambda: Answer(measured.exposition(), content_type=telemetry.CONTENT_TYPE.encode()),
            "/v1/models": self._models,
            "/openapi.json": lambda: Answer(openapi.document()),
            "/docs": lambda: Answer(*openapi.page("index.html")),
            **{f"/docs/{name}": _asset(name) for name in openapi.ASSETS},
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request. Whatever happens, the caller gets JSON and never a traceback."""
        if scope["type"] != "http":
            return
        started = time.monotonic()
        path: str = scope["path"]
        task = asyncio.current_task()
        hangup: asyncio.Future[Message] | None = None

        def give_up(done: asyncio.Future[Message]) -> None:
            if task is not None and not done.cancelled():
                task.cancel()

        try:
            ask = self._ask(path)
            if ask is not None and scope["method"] == "POST":
                deadline_s = started + self._deadline_ms(scope["headers"]) / 1e3
                body = await self._read(scope["headers"], receive, deadline_s)
                hangup = asyncio.ensure_future(receive())
                hangup.add_done_callback(give_up)
                with nullcontext() if self.dataplane is None else self.dataplane.in_use():
                    answer: Answer | None = await ask(body, scope["headers"], deadline_s)
            else:
                answer = self._give(path, scope["method"])
        except RankyardError as error:
            answer = _refusal(error, path)
        except _HangupError:
            answer = None
        except asyncio.CancelledError:
            is_gone = hangup is not None and hangup.done()
            stopped = UnavailableError("this gateway stopped before the answer was there; ask another one")
            answer = None if is_gone else _refusal(stopped, path)
        except Exception:
            _log.exception("a request to %s failed", path)
            answer = _refusal(RankyardError("the gateway failed on this request; its log says why"), path)
        finally:
            if hangup is not None:
                hangup.remove_done_callback(give_up)
                hangup.cancel()
        status = _HUNG_UP if answer is None else answer.status
        self._telemetry.answered(self._route(path), status, time.monotonic() - started)
        if answer is not None:
            await _send(send, answer)

    async def _understand(self, body: bytes, _headers: Headers, deadline_s: float) -> Answer:
        request = wire.decode(body, wire.understand_decoder)
        dataplane = self._opened()
        if (request.query is None) == (request.queries is None):
            found = "neither" if request.query is None else "both"
            raise InputError(
                f"a request must have either query or queries, got {found}; send one of them", field="query"
            )
        if request.queries is None:
            return Answer(wire.encode(await dataplane.understand(request.query, deadline_s)))
        results = await dataplane.understand_several(request.queries, deadline_s)
        return Answer(wire.encode(wire.UnderstandAnswers([_result(result) for result in results])))

    async def _rank(self, body: bytes, headers: Headers, deadline_s: float) -> Answer:
        dataplane = self._opened()
        is_arrow = _header(headers, b"content-type").partition(b";")[0].strip() == arrow.CONTENT_TYPE
        asked = dataplane.reader.read(body, is_arrow=is_arrow)
        try:
            ranking = await dataplane.rank(
                asked.request, top_k=asked.top_k, explain=asked.explain, deadline_s=deadline_s
            )
        except InputError as error:
            error.field = asked.path(error.field)
            raise
        return Answer(wire.encode(wire.rank_answer(ranking)))

    async def _infer(self, name: str, version: str | None, body: bytes, headers: Headers, deadline_s: float) -> Answer:
        dataplane = self._opened()
        served, model = dataplane.ranker(name, version)
        length = _header(headers, inference.HEADER_LENGTH)
        if length and not length.isdigit():
            raise InputError(f"Inference-Header-Content-Length must be a number, got {length[:20]!r}; correct it")
        asked = inference.read(body, int(length) if length else None, served, model, self._config.limits)
        scores_D = await dataplane.score(served, asked.encoded, deadline_s)
        content, header_length = inference.write(scores_D, asked, served)
        if header_length is None:
            return Answer(content)
        binary: Headers = [(inference.HEADER_LENGTH, str(header_length).encode())]
        return Answer(content, content_type=inference.BINARY, headers=binary)

    def _ask(self, path: str) -> Ask | None:
        if found := _MODEL_PATH.fullmatch(path):
            return partial(self._infer, found["name"], found["version"]) if found["what"] == "/infer" else None
        return self._posts.get(path)

    def _route(self, path: str) -> str:
        """The path without names, of which there may be any number."""
        if path in self._posts or path in self._gets:
            return path
        return f"/v2/models/NAME{found['what'] or ''}" if (found := _MODEL_PATH.fullmatch(path)) else "other"

    def _model(self, name: str, version: str | None, what: str | None) -> Answer:
        """Describe a ranker (`what` None), or say that it is ready (`/ready`)."""
        served, _ = self._opened().ranker(name, version)
        return Answer(wire.encode(inference.metadata(served)) if what is None else b"")

    def _give(self, path: str, method: str) -> Answer:
        give = self._gets.get(path)
        is_post = self._ask(path) is not None
        if not is_post and (found := _MODEL_PATH.fullmatch(path)):
            give = partial(self._model, found["name"], found["version"], found["what"])
        if give is not None and method in ("GET", "HEAD"):
            return give()
        if give is None and not is_post:
            raise NotFoundError(f"a path must be one of those in /docs, got {path[:100]}; correct it")
        allowed = "GET, HEAD" if give is not None else "POST"
        refusal = _refusal(MethodError(f"{path} must be called by {allowed}, got {method[:20]}; use that"), path)
        return Answer(refusal.body, refusal.status, headers=[(b"allow", allowed.encode())])

    def _ready(self) -> Answer:
        if self.is_draining:
            raise UnavailableError("this gateway must be ready to answer, it is stopping; ask another one")
        self._opened()
        return Answer(wire.encode(wire.StatusAnswer("ready")))

    def _models(self) -> Answer:
        roles = self._opened().roles
        models = []
        for ref, served in roles.models.items():
            variant = self._config.runtime.variant or served.bundle.variant
            family = served.bundle.manifest.family
            models.append(wire.ModelAnswer(ref, family, served.bundle.digest, variant, roles.answers(ref)))
        return Answer(wire.encode(wire.ModelsAnswer(models)))

    def _opened(self) -> Dataplane:
        if self.dataplane is None:
            raise UnavailableError("this gateway must be ready to answer, it is still starting; ask again")
        return self.dataplane

    def _deadline_ms(self, headers: Headers) -> float:
        for name, value in headers:
            if name == DEADLINE_HEADER:
                return _deadline_ms(value, self._config.max_deadline_ms)
        return self._config.deadline_ms

    async def _read(self, headers: Headers, receive: Receive, deadline_s: float) -> bytes:
        """Read the body; TooLargeError as soon as it is known to be, SlowBodyError at the request's deadline."""
        limit = self._config.limits.max_body_bytes
        for name, value in headers:
            # The HTTP parser has already refused what is not a number.
            if name == b"content-length" and int(value) > limit:
                raise await _too_large(int(value), limit, headers, receive)
        chunks = []
        n_bytes = 0
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _HangupError
                    chunks.append(message["body"])
                    n_bytes += len(message["body"])
                    if n_bytes > limit:
                        raise await _too_large(n_bytes, limit, headers, receive)
                    if not message["more_body"]:
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError as error:
            raise SlowBodyError(
                f"a body must arrive before its deadline, {n_bytes} bytes did; send it faster or allow more time with "
                "x-deadline-ms"
            ) from error


async def _too_large(n_bytes: int, limit: int, headers: Headers, receive: Receive) -> TooLargeError:
    if not any(name == b"expect" for name, _ in headers):
        await _discard(receive)
    return TooLargeError(f"a body must have at most {limit} bytes, got {n_bytes} or more; send less at once")


async def _discard(receive: Receive) -> None:
    n_bytes = 0
    try:
        async with asyncio.timeout(_RETRY_AFTER_S):
            while n_bytes < _DISCARDED_BYTES:
                message = await receive()
                if not message.get("more_body"):
                    return
                n_bytes += len(message["body"])
    except TimeoutError:
        return


def _deadline_ms(value: bytes, most_ms: float) -> float:
    try:
        deadline_ms = float(value)
    except ValueError:
        deadline_ms = math.nan
    if not 0 < deadline_ms <= most_ms:
        raise InputError(
            f"x-deadline-ms must be a number above 0 and up to {most_ms:g}, got {value[:40]!r}; "
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


def _header(headers: Headers, wanted: bytes) -> bytes:
    return next((value for name, value in headers if name == wanted), b"")


def _refusal(error: RankyardError, path: str) -> Answer:
    headers: Headers = []
    if error.http_status in (429, 503):
        wait_s = error.retry_after_s if isinstance(error, OverloadedError) else _RETRY_AFTER_S
        headers.append((b"retry-after", str(max(1, math.ceil(wait_s))).encode()))
    should_close = isinstance(error, TooLargeError | SlowBodyError) and error.field is None
    # The Open Inference Protocol has a sentence where the gateway's own routes have an object.
    said = inference.InferError(error.message) if path.startswith("/v2/") else _error(error)
    return Answer(wire.encode(said), error.http_status, headers=headers, should_close=should_close)


async def _send(send: Send, answer: Answer) -> None:
    headers: Headers = [
        (b"content-type", answer.content_type),
        (b"content-length", str(len(answer.body)).encode()),
        *answer.headers,
    ]
    if answer.should_close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})

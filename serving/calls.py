"""A call to a gateway without its input and output: what to send, when to try again, what the answer means.

Each call is a generator of steps: `Send` asks for an exchange, a number for a pause of as many seconds, and its return
value is the typed answer. `serving.client` carries the steps out, waiting or awaiting.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from models.answers import Contributions, Phase, Ranking, Understanding
from models.errors import (
    DeadlineError,
    InputError,
    NotFoundError,
    OverloadedError,
    RankyardError,
    TooLargeError,
    UnavailableError,
)
from serving.gateway import wire
from serving.gateway.errors import MalformedError, MethodError, SlowBodyError

T = TypeVar("T")
Steps = Generator["Send | float", "Received | RankyardError | None", T]

DEFAULT_DEADLINE_MS = 1_000.0

_RETRIED = (429, 503)
_ERRORS: dict[str, type[RankyardError]] = {
    error.code: error
    for error in (
        InputError,
        NotFoundError,
        TooLargeError,
        DeadlineError,
        UnavailableError,
        MalformedError,
        MethodError,
        SlowBodyError,
    )
}
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Send:
    """One exchange: `body` is None for a GET; give up after `timeout_s`."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Received:
    """What came back; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is tried again: only after 429, 503 and a failed connection, never beyond its deadline.

    most: retries of one call. share: of all calls, how many may be retried over time, so that retries cannot double the
    load of a gateway in trouble; reserve: retries that are free before the share counts (the retry budget of Finagle).
    first_wait_ms: mean pause before the first retry where the gateway names none, doubled before every further one.
    """

    most: int = 2
    share: float = 0.1
    reserve: float = 10.0
    first_wait_ms: float = 25.0


class Contract:
    """Every call of the HTTP contract, as steps. url: `http://HOST:PORT`, with a path where a proxy wants one.

    InputError for an address that is none.
    """

    def __init__(self, url: str, deadline_ms: float, retries: Retries) -> None:
        self.url = checked(url)
        self._deadline_ms = deadline_ms
        self._retries = retries
        self._budget = _Budget(retries)

    def understand(self, query: str, deadline_ms: float | None) -> Steps[Understanding]:
        """POST one query."""
        body = yield from self._post("/v1/understand", wire.UnderstandRequest(query=query), deadline_ms)
        return _decoded(_understanding, body, self.url)

    def understand_several(
        self, queries: Sequence[str], deadline_ms: float | None
    ) -> Steps[list[Understanding | RankyardError]]:
        """POST several queries; a bad one gives its error in its place."""
        body = yield from self._post("/v1/understand", wire.UnderstandRequest(queries=list(queries)), deadline_ms)
        results = _decoded(_several, body, self.url).results
        return [
            error(*_said(result)) if "error" in result else msgspec.convert(result, Understanding) for result in results
        ]

    def rank(self, request: wire.RankRequest, deadline_ms: float | None) -> Steps[Ranking]:
        """POST a query with its candidates."""
        body = yield from self._post("/v1/rank", request, deadline_ms)
        answer = _decoded(_ranking, body, self.url)
        return Ranking(
            ranking=answer.ranking,
            models=answer.models,
            phases=tuple(Phase(one.model, one.n_in, one.n_out, one.ms) for one in answer.phases),
            degraded=answer.degraded,
            reason=None if isinstance(answer.reason, msgspec.UnsetType) else answer.reason,
            explanations={} if isinstance(answer.explanations, msgspec.UnsetType) else answer.explanations,
            contributions=None
            if isinstance(found := answer.contributions, msgspec.UnsetType)
            else Contributions(found.base, found.candidates),
        )

    def models(self, deadline_ms: float | None) -> Steps[list[wire.ModelAnswer]]:
        """GET what is served."""
        body = yield from self._exchange("/v1/models", None, deadline_ms)
        return _decoded(_models, body, self.url).models

    def ready(self, deadline_ms: float | None) -> Steps[bool]:
        """GET whether the gateway answers; False too where nothing listens."""
        received = yield Send("/readyz", (), None, (deadline_ms or self._deadline_ms) / 1e3)
        return isinstance(received, Received) and received.status == 200

    def _post(self, path: str, request: msgspec.Struct, deadline_ms: float | None) -> Steps[bytes]:
        return self._exchange(path, _encode(request), deadline_ms)

    def _exchange(self, path: str, body: bytes | None, deadline_ms: float | None) -> Steps[bytes]:
        """Ask until there is an answer, an error that a retry cannot mend, or no time or budget for another try."""
        given_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        deadline_s = time.monotonic() + given_ms / 1e3
        self._budget.called()
        for n_retries in range(self._retries.most + 1):
            left_s = deadline_s - time.monotonic()
            headers = (("content-type", "application/json"), ("x-deadline-ms", f"{max(left_s * 1e3, 0.001):.3f}"))
            received = yield Send(path, headers, body, max(left_s, 1e-6))
            assert received is not None
            if isinstance(received, Received) and received.status == 200:
                return received.body
            failure = received if isinstance(received, RankyardError) else _failure(received, self.url)
            wait_s = self._wait_s(received, n_retries)
            if wait_s is None or time.monotonic() + wait_s >= deadline_s or not self._budget.takes_retry():
                raise failure
            yield wait_s
        raise AssertionError  # the last retry has no pause after it

    def _wait_s(self, received: Received | RankyardError, n_retries: int) -> float | None:
        """How long to pause before the next try; None where there must be none."""
        is_retried = (
            received.status in _RETRIED if isinstance(received, Received) else isinstance(received, UnavailableError)
        )
        if not is_retried or n_retries == self._retries.most:
            return None
        mean_s = self._retries.first_wait_ms / 1e3 * 2**n_retries
        # Callers that failed together must not come back together.
        wait_s = random.uniform(0, 2 * mean_s)  # noqa: S311 - no secret
        told_s = _retry_after_s(received) if isinstance(received, Received) else None
        return wait_s if told_s is None else told_s + wait_s


class _Budget:
    """A bucket of retries, filled by calls; shared by all threads of a client."""

    def __init__(self, retries: Retries) -> None:
        self._share, self._most = retries.share, retries.reserve
        self._left = retries.reserve
        self._lock = threading.Lock()

    def called(self) -> None:
        with self._lock:
            self._left = min(self._most, self._left + self._share)

    def takes_retry(self) -> bool:
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


def checked(url: str) -> str:
    """Give an address without its last slash; InputError where it is none."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_right = False
    if not is_right or parts.query or parts.fragment:
        raise InputError(f"a gateway's address must be like http://127.0.0.1:8080, got {url[:_SHOWN]!r}; correct it")
    return url.rstrip("/")


def error(code: str, message: str, field: str | None, retry_after_s: float = 1.0) -> RankyardError:
    """Make the error again that a gateway told of."""
    if code == OverloadedError.code:
        return OverloadedError(message, retry_after_s=retry_after_s, field=field)
    return _ERRORS.get(code, RankyardError)(message, field=field)


def _failure(received: Received, url: str) -> RankyardError:
    try:
        told = _error(received.body).error
    except msgspec.MsgspecError:
        start = received.body[:_SHOWN].decode("utf-8", "replace")
        return RankyardError(
            f"{url} must answer as a gateway does, got status {received.status} with {start!r}; check the address"
        )
    return error(told.code, told.message, told.field, _retry_after_s(received) or 1.0)


def _retry_after_s(received: Received) -> float | None:
    value = received.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else None


def _decoded(decode: Callable[[bytes], T], body: bytes, url: str) -> T:
    try:
        return decode(body)
    except msgspec.MsgspecError as error:
        raise RankyardError(
            f"{url} must answer as this client's version knows it, got another shape ({error}); use one of its version"
        ) from error


def _said(result: Any) -> tuple[str, str, str | None]:
    told = msgspec.convert(result, wire.ErrorAnswer).error
    return told.code, told.message, told.field


_encode = msgspec.json.Encoder().encode
_understanding = msgspec.json.Decoder(Understanding).decode
_several = msgspec.json.Decoder(wire.UnderstandAnswers).decode
_ranking = msgspec.json.Decoder(wire.RankAnswer).decode
_models = msgspec.json.Decoder(wire.ModelsAnswer).decode
_error = msgspec.json.Decoder(wire.ErrorAnswer).decode

"""An exchange with a gateway, until there is an answer: deadlines, retries within a budget, and refusals as errors.

Coroutines over a transport. One whose transport blocks never suspends, so `serving.client` runs the same for those who
wait and for those who await.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

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
from serving.gateway.errors import (
    ExpectationError,
    HeadTooLargeError,
    MalformedArrowError,
    MalformedEncodingError,
    MalformedError,
    MalformedHttpError,
    MalformedMessageError,
    MediaError,
    MethodError,
    ReplayError,
    SignatureError,
    SlowBodyError,
    SlowHeadError,
    UnsupportedError,
)

DEADLINE_HEADER = "x-deadline-ms"

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
        MalformedArrowError,
        MalformedEncodingError,
        MalformedHttpError,
        MalformedMessageError,
        HeadTooLargeError,
        ExpectationError,
        SlowHeadError,
        SlowBodyError,
        MediaError,
        MethodError,
        UnsupportedError,
        SignatureError,
        ReplayError,
    )
}
_CODES = {error.http_status: error.code for error in reversed(_ERRORS.values())} | {429: OverloadedError.code}
"""What a refusal of the Open Inference Protocol means, which is a sentence alone."""
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


class Transport(Protocol):
    """Carries bytes to the gateway and back."""

    async def send(self, url: str, step: Send) -> Received | RankyardError:
        """Exchange once; DeadlineError or UnavailableError as a value where that failed."""

    async def pause(self, seconds: float) -> None:
        """Let time pass."""

    async def close(self) -> None:
        """Close the connections."""


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


class Exchange:
    """Asks one gateway. deadline_ms: of a call that does not say its own; InputError for an address that is none."""

    def __init__(self, url: str, transport: Transport, deadline_ms: float, retries: Retries) -> None:
        self.url = _checked(url)
        self._transport = transport
        self._deadline_ms = deadline_ms
        self._retries = retries
        self._budget = _Budget(retries)

    async def once(self, path: str, deadline_ms: float | None) -> Received | RankyardError:
        """GET without a retry; what failed is a value."""
        return await self._transport.send(self.url, Send(path, (), None, (deadline_ms or self._deadline_ms) / 1e3))

    async def ask(
        self, path: str, body: bytes | None, headers: tuple[tuple[str, str], ...], deadline_ms: float | None
    ) -> Received:
        """Ask until there is an answer, an error that a retry cannot mend, or no time or budget for another try."""
        given_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        deadline_s = time.monotonic() + given_ms / 1e3
        self._budget.called()
        for n_retries in range(self._retries.most + 1):
            left_s = deadline_s - time.monotonic()
            told = (*headers, (DEADLINE_HEADER, f"{max(left_s * 1e3, 0.001):.3f}"))
            received = await self._transport.send(self.url, Send(path, told, body, max(left_s, 1e-6)))
            if isinstance(received, Received) and received.status == 200:
                return received
            failure = received if isinstance(received, RankyardError) else _failure(received, self.url)
            wait_s = self._wait_s(received, n_retries)
            if wait_s is None or time.monotonic() + wait_s >= deadline_s or not self._budget.takes_retry():
                raise failure
            await self._transport.pause(wait_s)
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


def _checked(url: str) -> str:
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
        told = _refused(received.body).error
    except msgspec.MsgspecError:
        start = received.body[:_SHOWN].decode("utf-8", "replace")
        return RankyardError(
            f"{url} must answer as a gateway does, got status {received.status} with {start!r}; check the address"
        )
    if isinstance(told, str):
        told = wire.ErrorBody(_CODES.get(received.status, RankyardError.code), told, None)
    return error(told.code, told.message, told.field, _retry_after_s(received) or 1.0)


def _retry_after_s(received: Received) -> float | None:
    value = received.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else None


class _Refusal(msgspec.Struct, frozen=True):
    """An error of the gateway's own routes, or of those of the Open Inference Protocol."""

    error: wire.ErrorBody | str


_refused = msgspec.json.Decoder(_Refusal).decode

"""Requests and answers, as the HTTP server and the application hand them to each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.errors import RankyardError
from serving.gateway.dataplane import Dataplane
from serving.gateway.tracing import Span

JSON = b"application/json"
DEADLINE_HEADER = b"x-deadline-ms"


@dataclass(slots=True)
class Request:
    """One request, all of it.

    begun_s: when its first byte was read, on the clock of `time.monotonic()`. path: without the query, percent-decoded.
    headers: values by name in lower case, those of one name joined by commas. fault: why the rest of it never came; it
    is the answer. is_given_up: the caller has hung up, there is nobody to answer. request_id: what the application
    calls it, for the server to tell its caller. span: where it is traced.
    """

    begun_s: float
    method: str = ""
    path: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    fault: RankyardError | None = None
    is_given_up: bool = False
    request_id: bytes = b""
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; the server adds what the connection needs."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()


Work = Callable[[Dataplane], Awaitable[Answer]]
"""What is left to do for a request, with the models that are served when it begins."""
Ask = Callable[[Request, float], Answer | Work | Coroutine[Any, Any, Answer]]
"""How a route answers a request by its deadline."""


class Application(Protocol):
    """What the HTTP server asks."""

    def allowed_s(self, request: Request) -> float:
        """Seconds from its first byte within which a request whose head is there must have all of its body."""

    def answer(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        """Answer at once where nothing is to be waited for, which costs no task; never raises.

        The coroutine is cancelled when the caller hangs up, or when the server stops and cannot wait any longer, but
        never before it has begun: what is kept for it must be given back. It gives an answer all the same.
        """

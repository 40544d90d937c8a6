"""One connection: requests in their order, one at a time, and what a slow or hostile client may cost.

What a connection holds is bounded: a head, two bodies, a few requests that wait, and one answer beyond the socket's
buffer; what the bodies of all of them take is bounded too. A client that sends faster than it is answered, or does not
read, is not read either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

from models.errors import RankyardError
from serving.gateway.errors import SlowBodyError, SlowHeadError
from serving.gateway.messages import Answer, Application, Request
from serving.gateway.parser import Limits, RequestParser

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES: Mapping[int, bytes] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take; good to about a second.

    head_s: from a head's first byte to its last. idle_s: without a request; load balancers reuse connections for about
    a minute. stalled_s: without taking any of its answer. linger_s, linger_bytes: what is still read, and thrown away,
    after the last answer, so that a client that sends before it reads sees that answer and no reset.
    """

    head_s: float = 10.0
    idle_s: float = 75.0
    stalled_s: float = 30.0
    linger_s: float = 1.0
    linger_bytes: int = 16 * 1024 * 1024


class Listener(Protocol):
    """What a connection knows of the server that it belongs to."""

    application: Application
    limits: Limits
    patience: Patience
    is_stopping: bool
    date: bytes

    def opened(self, connection: Connection) -> RankyardError | None:
        """Count a connection in; why it cannot be taken, where it cannot."""

    def closed(self, connection: Connection) -> None:
        """Count a connection out."""

    def hold(self, n_bytes: int) -> RankyardError | None:
        """Count bytes of bodies in, or out where there are fewer; why no more can be held, where they cannot."""

    def asked(self, begun_s: float) -> None:
        """Count a request in that is being answered; begun_s: when its first byte was read."""

    def answered(self) -> None:
        """Count a request out."""

    def send_soon(self, connection: Connection) -> None:
        """Let a connection `flush` at the end of this turn of the loop."""


class Connection(asyncio.Protocol):
    """Called back by the event loop that it belongs to, and by the server's clock."""

    __slots__ = (
        "_asked",
        "_held",
        "_is_clogged",
        "_is_closing",
        "_is_reading",
        "_n_bodies",
        "_n_discarded",
        "_n_unsent",
        "_parser",
        "_server",
        "_since_s",
        "_slow",
        "_task",
        "_timer",
        "_transport",
        "_unsent",
    )

    _transport: asyncio.Transport

    def __init__(self, server: Listener) -> None:
        self._server = server
        self._parser = RequestParser(server.limits)
        self._held: bytes | memoryview = b""  # read, but not parsed yet
        self._asked: Request | None = None
        self._task: asyncio.Task[Answer] | None = None
        self._slow: Request | None = None  # whose body is awaited
        self._timer: asyncio.TimerHandle | None = None
        self._since_s = time.monotonic()  # when it last got on: opened, answered, or read its answer
        self._n_unsent = 0
        self._unsent = b""  # an answer of this turn of the loop
        self._n_bodies = 0  # bytes of the bodies held here, of those that did not come in one piece
        self._n_discarded = 0
        self._is_reading = True
        self._is_clogged = False  # the client does not take what it is sent
        self._is_closing = False  # has been sent its last answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        fault = self._server.opened(self)
        if fault is not None:
            self._parser.fail(fault)
            self._advance()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Give up what nobody waits for any more."""
        self._server.closed(self)
        self._server.hold(-self._n_bodies)
        self._is_closing = True
        self._parser.close()
        self._held = self._unsent = b""
        if self._timer is not None:
            self._timer.cancel()
        if self._asked is not None:
            self._asked.is_given_up = True
        self._cancel()

    def data_received(self, data: bytes) -> None:
        """Read requests, and answer them."""
        if self._parser.is_done:
            self._n_discarded += len(data)
            if self._n_discarded > self._server.patience.linger_bytes:
                self._transport.abort()
            return
        self._held = self._parser.feed(data)
        if self._parser.has_head or self._n_bodies:
            self._count_bodies()
        self._advance()

    def pause_writing(self) -> None:
        """Wait: the client does not take what it is sent."""
        self._is_clogged = True

    def resume_writing(self) -> None:
        """Go on: it does."""
        self._is_clogged = False
        self._advance()

    @property
    def is_idle(self) -> bool:
        """Whether no request has been begun."""
        parser = self._parser
        return self._asked is None and parser.reading is None and not (parser.whole or self._held or self._is_closing)

    def close(self) -> None:
        """Hang up, when what was answered has been sent."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Hang up now."""
        self._transport.abort()

    def flush(self) -> None:
        """Send what has been answered in this turn of the loop."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            self._transport.write(unsent)

    def abandon(self, fault: RankyardError) -> None:
        """Answer all that has been begun now: with `fault`, where there is no answer yet."""
        for request in self._parser.whole:
            request.fault = fault
        if self._parser.reading is not None:
            self._parser.fail(fault)
        self._cancel()
        self._advance()

    def check(self, now_s: float) -> None:
        """End what lasts too long; called about once a second."""
        patience, parser = self._server.patience, self._parser
        n_unsent = self._transport.get_write_buffer_size()
        if n_unsent != self._n_unsent:
            self._n_unsent, self._since_s = n_unsent, now_s
        waited_s = now_s - self._since_s
        if n_unsent or self._is_closing:
            if waited_s > (patience.stalled_s if n_unsent else patience.linger_s):
                self._transport.abort()
        elif self._asked is None and parser.reading is None:
            if waited_s > patience.idle_s:
                self.close()
        elif parser.reading is not None and not parser.has_head and now_s - parser.reading.begun_s > patience.head_s:
            parser.fail(
                SlowHeadError(f"a request's head must arrive within {patience.head_s:g} s, it did not; send it faster")
            )
            self._advance()

    def _advance(self) -> None:
        """Answer what has been read, and read on as long as there is room."""
        parser = self._parser
        if self._transport.is_closing():
            return  # `connection_lost` is on its way
        while self._asked is None and not self._is_clogged and not self._is_closing:
            if parser.whole:
                self._ask(parser.whole.pop(0))
            elif self._held:
                self._held = parser.feed(self._held)
            else:
                break
        if self._is_closing:
            return
        has_room = not self._held and parser.has_room
        if has_room is not self._is_reading:
            self._is_reading = has_room
            if has_room:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
        if parser.has_head or self._slow is not None:
            self._await_body()

    def _ask(self, request: Request) -> None:
        self._server.asked(request.begun_s)
        answer = self._server.application.answer(request)
        if isinstance(answer, Answer):
            self._server.answered()
            self._give(request, answer)
            return
        self._asked = request
        self._task = asyncio.get_running_loop().create_task(answer)
        self._task.add_done_callback(self._answered)

    def _cancel(self) -> None:
        """Give up what is asked, once it has begun: a task that ends before its first step gives nothing back."""
        if self._task is not None:
            asyncio.get_running_loop().call_soon(self._task.cancel)

    def _answered(self, task: asyncio.Task[Answer]) -> None:
        request, self._asked, self._task = self._asked, None, None
        self._server.answered()
        assert request is not None
        try:
            answer = task.result()
        except BaseException:
            self._transport.abort()
            raise
        if not self._transport.is_closing():
            self._give(request, answer)
            self._advance()

    def _give(self, request: Request, answer: Answer) -> None:
        parser = self._parser
        is_last = parser.is_done or (self._server.is_stopping and parser.reading is None)
        is_last = is_last and not parser.whole and not self._held
        parts = [
            _STATUS_LINES[answer.status],
            b"date: %b\r\nx-request-id: %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n"
            % (self._server.date, request.request_id, answer.content_type, len(answer.body)),
            *[b"%b: %b\r\n" % header for header in answer.headers],
            b"connection: close\r\n\r\n" if is_last else b"\r\n",
            b"" if request.method == "HEAD" else answer.body,
        ]
        self._send(b"".join(parts))
        self._since_s = time.monotonic()
        if self._n_bodies:
            self._count_bodies()
        if is_last:
            self._linger()

    def _send(self, data: bytes) -> None:
        """Send at the end of this turn of the loop, or at once where more waits that a clogged client must not ask for.

        A client that shares the machine wakes up with the first of several answers, and takes the core from the rest.
        """
        if not self._unsent:
            self._server.send_soon(self)
        self._unsent += data
        if self._held or self._parser.whole:
            self.flush()

    def _linger(self) -> None:
        """Send the end, and wait for the client's: closing what has unread bytes would take the answer back."""
        self.flush()
        self._is_closing = self._parser.is_done = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_reading:
            self._transport.resume_reading()
        self._transport.write_eof()

    def _count_bodies(self) -> None:
        """Tell the server what is held here; a body that comes when all of them take too much is refused."""
        parser = self._parser
        n_bytes = parser.n_body + sum(len(request.body) for request in parser.whole)
        if self._asked is not None:
            n_bytes += len(self._asked.body)
        n_more, self._n_bodies = n_bytes - self._n_bodies, n_bytes
        fault = self._server.hold(n_more)
        if fault is not None and parser.has_head:
            parser.fail(fault)

    def _await_body(self) -> None:
        """Let a request wait for its body until its deadline; ask for the body where the client waits to be asked."""
        parser = self._parser
        awaited = parser.reading if parser.has_head else None
        if awaited is not self._slow:
            self._slow = awaited
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if awaited is not None:
                left_s = awaited.begun_s + self._server.application.allowed_s(awaited) - time.monotonic()
                self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._give_up_body)
        if parser.must_continue and self._asked is None and not parser.whole:
            parser.must_continue = False
            self._send(_CONTINUE)

    def _give_up_body(self) -> None:
        self._parser.fail(
            SlowBodyError(
                f"a body must arrive before its deadline, {self._parser.n_body} bytes did; send it faster or allow "
                "more time with x-deadline-ms"
            )
        )
        self._advance()

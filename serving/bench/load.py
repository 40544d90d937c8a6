"""The load itself: one thread, plain sockets, requests that are bytes already.

A load generator shares the machine with what it measures, so it must cost next to nothing. Measured against a server
that does nothing: 36,000 requests a second at 14 us of the processor each, with making and recording them, where httpx
alone takes 306 us and its asynchronous half 848 us. Waiting is done by select, whose timeout is good to microseconds;
those of epoll and of event loops are good to a millisecond, which would stand in every latency of an open loop.
"""

from __future__ import annotations

import gc
import math
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools

from models.errors import InputError
from serving import tls
from serving.bench.record import Record

_CHUNK = 1 << 18
_SOON_S = 0.0005
"""Open loop: where the next request is due sooner than this, answers that come before are read then: waking up for each
of them took a fifth of the load's own time at 3,000 requests a second, from a server that shares its cores."""
_PAUSE_S = 0.02
"""How long a connection that failed waits before it is tried again, so that a dead server is not hammered."""
_SCAN_S = 0.05
_REFUSED = 429

Address = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a load lasts and what limits it.

    warmup_s: load before anything is counted. timeout_s: when an answer is given up. n_connections: in a closed loop
    how many always wait for an answer, in an open one how many may be open; what is due while all are taken waits, and
    its latency grows. limit_ms: what goodput is about. ca_file: who may sign for an https server.
    """

    seconds: float
    warmup_s: float
    n_connections: int
    timeout_s: float = 10.0
    limit_ms: float = 50.0
    ca_file: Path | None = None


def closed_loop(url: str, requests: Iterator[bytes], plan: Plan) -> Record:
    """Every connection sends its next request when it has its answer."""
    return _Load(url, requests, plan, None).run()


def open_loop(url: str, requests: Iterator[bytes], arrivals_s: Iterator[float], plan: Plan) -> Record:
    """Requests are due when the world sends them, whatever the server does; arrivals_s: rising, from 0, endless."""
    return _Load(url, requests, plan, arrivals_s).run()


@dataclass(frozen=True, slots=True)
class _Server:
    """Where requests go; secure: what checks an https server's certificate."""

    family: int
    address: Address
    name: str | None
    secure: ssl.SSLContext | None


class _Connection:
    """One connection and the request that is on it; called back by the HTTP parser."""

    __slots__ = (
        "_parser",
        "_server",
        "_status",
        "begun_s",
        "due_s",
        "is_busy",
        "is_kept",
        "is_told_when",
        "left",
        "sock",
    )

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.sock = socket.socket(server.family, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.sock.connect_ex(server.address)
        self._parser = httptools.HttpResponseParser(self)
        self._status: int | None = None
        self.left: bytes | memoryview = b""
        self.is_busy = False
        self.is_kept = True
        self.is_told_when = False
        self.due_s = self.begun_s = 0.0

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # 100 Continue is no answer
            self._status = status
            self.is_kept = self._parser.should_keep_alive()

    def begin(self, request: bytes, due_s: float, now_s: float) -> int:
        """Take a request on; the events to wait for."""
        self.is_busy, self._status = True, None
        self.due_s, self.begun_s, self.left = due_s, now_s, request
        return self.write()

    def write(self) -> int:
        """Send what is left; the events to wait for. OSError where the connection is of no use."""
        try:
            if self._server.secure is not None and not isinstance(self.sock, ssl.SSLSocket):
                self._secure(self._server.secure)
            n_sent = self.sock.send(self.left)
        except ssl.SSLWantReadError:  # it is the server's turn to shake hands
            return select.EPOLLIN
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
            return select.EPOLLIN | select.EPOLLOUT
        self.left = memoryview(self.left)[n_sent:]
        return select.EPOLLIN | (select.EPOLLOUT if self.left else 0)

    def _secure(self, context: ssl.SSLContext) -> None:
        """Begin TLS, once the socket is connected: before that it would go on in the clear."""
        try:
            self.sock.getpeername()
        except OSError as error:
            raise BlockingIOError from error
        self.sock = context.wrap_socket(self.sock, server_hostname=self._server.name, do_handshake_on_connect=False)

    def read(self) -> int | None:
        """Take what has come; the status once the answer is whole. OSError where the connection is of no more use."""
        try:
            chunk = self.sock.recv(_CHUNK)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):  # TLS's own, such as a session's ticket
            return None
        if not chunk:
            raise ConnectionResetError
        self._parser.feed_data(chunk)
        if self._status == _REFUSED:  # looked for here: a parser that collects headers costs every answer
            self.is_told_when = b"\r\nretry-after:" in chunk.lower()
        return self._status


class _Load:
    def __init__(self, url: str, requests: Iterator[bytes], plan: Plan, arrivals_s: Iterator[float] | None) -> None:
        self._requests = requests
        self._made = next(requests)
        """The next request, made before it is due: what making it takes is no part of any latency."""
        self._plan = plan
        self._arrivals_s = arrivals_s
        self._server = _resolved(url, plan.ca_file)
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._paused: deque[float] = deque()
        """When each of the connections that failed may be replaced."""
        self._backlog: deque[float] = deque()
        """Open loop: when the requests were due that no connection was free for."""
        self._is_over = False

    def run(self) -> Record:
        with _no_collections():  # which begins with one, and that may take seconds
            try:
                return self._run(self._plan)
            finally:
                for connection in self._connections.values():
                    connection.sock.close()
                self._poll.close()

    def _run(self, plan: Plan) -> Record:
        self._start_s = time.perf_counter()
        begin_s = self._start_s + plan.warmup_s
        self._record = record = Record(begin_s, begin_s + plan.seconds, plan.limit_ms)
        self._due_s = math.inf if self._arrivals_s is None else self._start_s + next(self._arrivals_s)
        if self._arrivals_s is None:
            for _ in range(plan.n_connections):
                self._free(self._connect())
        self._until(begin_s)
        cpu_s = time.process_time()
        self._until(record.end_s)
        record.client_cpu_s = time.process_time() - cpu_s
        self._drain(time.perf_counter() + plan.timeout_s)
        return record

    def _until(self, end_s: float) -> None:
        scan_s = 0.0
        while (now_s := time.perf_counter()) < end_s:
            while self._due_s <= now_s:
                self._arrived(self._due_s)
                self._due_s = self._start_s + next(self._arrivals_s or iter(()))
            if now_s >= scan_s:
                self._look_after(now_s)
                scan_s = now_s + _SCAN_S
            self._serve(min(self._due_s, end_s, scan_s))

    def _drain(self, end_s: float) -> None:
        """Wait for the answers of what was sent; nothing new begins but what was due while the load was held up."""
        while self._due_s < self._record.end_s:
            self._arrived(self._due_s)
            self._due_s = self._start_s + next(self._arrivals_s or iter(()))
        self._is_over = True
        for due_s in self._backlog:
            self._record.failed(due_s, "unsent")
        while self._n_busy() and (now_s := time.perf_counter()) < end_s:
            self._look_after(now_s)
            self._serve(now_s + _SCAN_S)
        for connection in self._connections.values():
            if connection.is_busy:
                self._record.failed(connection.due_s, "timeout")

    def _n_busy(self) -> int:
        return sum(connection.is_busy for connection in self._connections.values())

    def _serve(self, until_s: float) -> None:
        """Handle what happens on the connections; return at `until_s` at the latest, or after the first events."""
        wait_s = max(0.0, until_s - time.perf_counter())
        if until_s == self._due_s and wait_s < _SOON_S:
            time.sleep(wait_s)
        else:
            select.select((self._poll,), (), (), wait_s)
        for number, mask in self._poll.poll(0):
            connection = self._connections.get(number)
            if connection is None:
                continue
            try:
                if connection.left:
                    self._poll.modify(number, connection.write())
                status = connection.read() if mask & ~select.EPOLLOUT else None
            except (OSError, httptools.HttpParserError):
                self._lost(connection)
                continue
            if status is not None:
                self._note(connection, status)
                connection.is_busy = False
                if not connection.is_kept:
                    self._forget(connection)
                    if self._is_over:
                        continue
                    connection = self._connect()
                self._free(connection)

    def _note(self, connection: _Connection, status: int) -> None:
        done_s = time.perf_counter()
        if status == _REFUSED:
            self._record.refused(connection.due_s, done_s, is_told_when=connection.is_told_when)
        else:
            self._record.answered(connection.due_s, done_s, status)

    def _arrived(self, due_s: float) -> None:
        """Open loop: a request is due."""
        if self._idle:
            self._begin(self._idle.pop(), due_s)
        elif len(self._connections) + len(self._paused) < self._plan.n_connections:
            self._begin(self._connect(), due_s)
        else:
            self._backlog.append(due_s)

    def _free(self, connection: _Connection) -> None:
        """Give a connection its next request, where there is one."""
        if self._is_over:
            return
        if self._arrivals_s is None:
            self._begin(connection, time.perf_counter())
        elif self._backlog:
            self._begin(connection, self._backlog.popleft())
        else:
            self._idle.append(connection)

    def _begin(self, connection: _Connection, due_s: float) -> None:
        try:
            events = connection.begin(self._made, due_s, time.perf_counter())
            self._made = next(self._requests)
            if events != select.EPOLLIN:
                self._poll.modify(connection.sock.fileno(), events)
        except OSError:
            self._lost(connection)

    def _connect(self) -> _Connection:
        connection = _Connection(self._server)
        self._connections[connection.sock.fileno()] = connection
        self._poll.register(connection.sock.fileno(), select.EPOLLIN)
        return connection

    def _lost(self, connection: _Connection, kind: str = "connection") -> None:
        if connection.is_busy:
            self._record.failed(connection.due_s, kind)
        elif connection in self._idle:
            self._idle.remove(connection)
        self._forget(connection)
        self._paused.append(time.perf_counter() + _PAUSE_S)

    def _forget(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        connection.sock.close()  # which takes it out of the poll

    def _look_after(self, now_s: float) -> None:
        """Replace connections that failed, give up those that wait too long."""
        while self._paused and self._paused[0] <= now_s:
            self._paused.popleft()
            if self._arrivals_s is None or self._backlog:
                self._free(self._connect())
        late_s = now_s - self._plan.timeout_s
        for connection in [one for one in self._connections.values() if one.is_busy and one.begun_s < late_s]:
            self._lost(connection, "timeout")


def _resolved(url: str, ca_file: Path | None) -> _Server:
    secure, parts = tls.context(url, ca_file), urlsplit(url)
    port = parts.port or (80 if secure is None else 443)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"{parts.hostname} must be a host that is known, got: {error.strerror}; correct it") from error
    return _Server(found[0][0], found[0][4], parts.hostname, secure)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep Python from stopping the load to look for garbage."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

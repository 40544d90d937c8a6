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
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from models.errors import InputError
from serving.bench.record import Record

_CHUNK = 1 << 18
_PAUSE_S = 0.02
"""How long a connection that failed waits before it is tried again, so that a dead server is not hammered."""
_SCAN_S = 0.05

Address = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a load lasts and what limits it.

    warmup_s: load before anything is counted. timeout_s: when an answer is given up. n_connections: in a closed loop
    how many always wait for an answer, in an open one how many may be open; what is due while all are taken waits, and
    its latency grows. limit_ms: what goodput is about.
    """

    seconds: float
    warmup_s: float
    n_connections: int
    timeout_s: float = 10.0
    limit_ms: float = 50.0


def closed_loop(url: str, requests: Iterator[bytes], plan: Plan) -> Record:
    """Every connection sends its next request when it has its answer."""
    return _Load(url, requests, plan, None).run()


def open_loop(url: str, requests: Iterator[bytes], arrivals_s: Iterator[float], plan: Plan) -> Record:
    """Requests are due when the world sends them, whatever the server does; arrivals_s: rising, from 0, endless."""
    return _Load(url, requests, plan, arrivals_s).run()


class _Connection:
    """One connection and the request that is on it; called back by the HTTP parser."""

    __slots__ = ("_parser", "_status", "begun_s", "due_s", "is_busy", "is_kept", "left", "sock")

    def __init__(self, family: int, address: Address) -> None:
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.sock.connect_ex(address)
        self._parser = httptools.HttpResponseParser(self)
        self._status: int | None = None
        self.left: bytes | memoryview = b""
        self.is_busy = False
        self.is_kept = True
        self.due_s = self.begun_s = 0.0

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # 100 Continue is no answer
            self._status = status
            self.is_kept = self._parser.should_keep_alive()

    def begin(self, request: bytes, due_s: float, now_s: float) -> bool:
        """Take a request on; False where not all of it could be sent at once."""
        self.is_busy, self._status = True, None
        self.due_s, self.begun_s, self.left = due_s, now_s, request
        return self.write()

    def write(self) -> bool:
        """Send what is left; False where the socket takes no more now. OSError where it is of no use."""
        try:
            n_sent = self.sock.send(self.left)
        except (BlockingIOError, InterruptedError):
            return False
        self.left = memoryview(self.left)[n_sent:]
        return not len(self.left)

    def read(self) -> int | None:
        """Take what has come; the status once the answer is whole. OSError where the connection is of no more use."""
        chunk = self.sock.recv(_CHUNK)
        if not chunk:
            raise ConnectionResetError
        self._parser.feed_data(chunk)
        return self._status


class _Load:
    def __init__(self, url: str, requests: Iterator[bytes], plan: Plan, arrivals_s: Iterator[float] | None) -> None:
        self._requests = requests
        self._plan = plan
        self._arrivals_s = arrivals_s
        self._family, self._address = _resolved(url)
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._paused: deque[float] = deque()
        """When each of the connections that failed may be replaced."""
        self._backlog: deque[float] = deque()
        """Open loop: when the requests were due that no connection was free for."""
        self._is_over = False

    def run(self) -> Record:
        plan = self._plan
        self._start_s = time.perf_counter()
        begin_s = self._start_s + plan.warmup_s
        self._record = record = Record(begin_s, begin_s + plan.seconds, plan.limit_ms)
        self._due_s = math.inf if self._arrivals_s is None else self._start_s + next(self._arrivals_s)
        with _no_collections():
            try:
                if self._arrivals_s is None:
                    for _ in range(plan.n_connections):
                        self._free(self._connect())
                self._until(begin_s)
                cpu_s = time.process_time()
                self._until(record.end_s)
                record.client_cpu_s = time.process_time() - cpu_s
                self._drain(time.perf_counter() + plan.timeout_s)
            finally:
                for connection in self._connections.values():
                    connection.sock.close()
                self._poll.close()
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
        """Wait for the answers of what was sent; nothing new begins."""
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
        select.select((self._poll,), (), (), max(0.0, until_s - time.perf_counter()))
        for number, mask in self._poll.poll(0):
            connection = self._connections.get(number)
            if connection is None:
                continue
            try:
                if mask & select.EPOLLOUT and connection.write():
                    self._poll.modify(number, select.EPOLLIN)
                status = connection.read() if mask & ~select.EPOLLOUT else None
            except (OSError, httptools.HttpParserError):
                self._lost(connection)
                continue
            if status is not None:
                self._record.answered(connection.due_s, time.perf_counter(), status)
                connection.is_busy = False
                if not connection.is_kept:
                    self._forget(connection)
                    if self._is_over:
                        continue
                    connection = self._connect()
                self._free(connection)

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
            if not connection.begin(next(self._requests), due_s, time.perf_counter()):
                self._poll.modify(connection.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            self._lost(connection)

    def _connect(self) -> _Connection:
        connection = _Connection(self._family, self._address)
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


def _resolved(url: str) -> tuple[int, Address]:
    parts = urlsplit(url)
    if parts.scheme != "http":
        raise InputError(f"a load goes over plain HTTP, to http://HOST:PORT, got {url}; name the gateway itself")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"{parts.hostname} must be a host that is known, got: {error.strerror}; correct it") from error
    return found[0][0], found[0][4]


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep Python from stopping the load to look for garbage."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

"""The HTTP server: a listener's connections, the one clock for all of them, and their orderly end.

HTTP/1.1 without TLS: a proxy terminates that. Of its own because it costs half of what a general server does
(docs/decisions/0009), and because it must stand slow and hostile clients.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from email.utils import formatdate

from models.errors import OverloadedError, RankyardError, UnavailableError
from serving.gateway.connection import Connection, Patience
from serving.gateway.messages import Application
from serving.gateway.parser import Limits
from serving.gateway.port import BACKLOG

_ROUND_S, _ROUND_TICKS = 1.0, 16
"""Every connection is looked at once a round, a part of them at every tick: thousands at once would hold up others."""
_SOON_S = 0.0005
"""A caller that asks again within this time of its answer finds the loop awake: to be woken up, and to find its memory
in no cache, takes a quarter of the time of a short request."""
_LAST_ANSWERS_S = 1.0
"""How long what was given up at the end of a drain may take to be told so."""
_MAX_REFUSED = 256
"""Connections beyond the limit that are told so at the same time; others are closed without a word."""


class HttpServer:
    """Serves an application; belongs to one event loop.

    max_connections: open at once; what comes beyond is answered 503. max_bodies_bytes: what bodies that did not come in
    one piece may take until they are answered; what comes beyond is answered 429.
    """

    def __init__(
        self,
        application: Application,
        limits: Limits,
        *,
        max_connections: int,
        max_bodies_bytes: int,
        patience: Patience | None = None,
    ) -> None:
        self.application = application
        self.limits = limits
        self.patience = patience or Patience()
        self.is_stopping = False
        self.date = b""
        self.ended: Callable[[], None] = lambda: None
        """Called when a connection has ended."""
        self._max_connections = max_connections
        self._max_bodies_bytes = max_bodies_bytes
        self._n_bodies = 0
        self._connections: set[Connection] = set()
        self._unchecked: list[Connection] = []
        self._unsent: list[Connection] = []
        self._n_asked = 0
        self._sent_s = 0.0
        self._comes_soon = False
        """Whether the last request that found nothing to do came soon after the answer before."""
        self._is_awake = False
        self._n_each_tick = 1
        self._server: asyncio.Server | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._all_closed = asyncio.Event()

    @property
    def n_connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def start(self, listener: socket.socket | None) -> None:
        """Take connections; `listener` is bound, and listens already. None: `take` alone brings them."""
        self._tick()
        if listener is not None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)

    async def take(self, connection: socket.socket) -> None:
        """Take one connection that somebody else has accepted."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(self), connection)
        except OSError:  # the caller has hung up already
            connection.close()
            self.ended()

    async def stop(self, drain_s: float) -> None:
        """Take no more connections, and finish what has been begun; what is left after `drain_s` is answered 503."""
        self.is_stopping = True
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            if connection.is_idle:
                connection.close()
        stopped = UnavailableError("this gateway stopped before the answer was there; ask another one")
        if not await self._closed_within(drain_s):
            for connection in tuple(self._connections):
                connection.abandon(stopped)
        if not await self._closed_within(_LAST_ANSWERS_S):
            for connection in tuple(self._connections):
                connection.abort()
        if self._clock is not None:
            self._clock.cancel()

    def opened(self, connection: Connection) -> RankyardError | None:
        """Count a connection in; why it cannot be taken, where it cannot."""
        self._connections.add(connection)
        self._all_closed.clear()
        if self.is_stopping:  # it was on its way when the listener closed
            return UnavailableError("this gateway is stopping and takes no new work; ask another one")
        n_beyond = len(self._connections) - self._max_connections
        if n_beyond > _MAX_REFUSED:
            connection.abort()
        if not 0 < n_beyond <= _MAX_REFUSED:
            return None
        return UnavailableError(
            f"this gateway keeps at most {self._max_connections} connections, as many are open; close some or ask "
            "another one"
        )

    def closed(self, connection: Connection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        self.ended()
        if not self._connections:
            self._all_closed.set()

    def hold(self, n_bytes: int) -> RankyardError | None:
        """Count bytes of bodies in, or out where there are fewer; why no more can be held, where they cannot."""
        self._n_bodies += n_bytes
        if n_bytes <= 0 or self._n_bodies <= self._max_bodies_bytes:
            return None
        return OverloadedError(
            f"the bodies of all requests may take {self._max_bodies_bytes} bytes at a time, they do; come back, or "
            "send less at once",
            retry_after_s=1.0,
        )

    def asked(self, begun_s: float) -> None:
        """Count a request in that is being answered; begun_s: when its first byte was read."""
        if not self._n_asked:
            self._comes_soon = begun_s - self._sent_s < _SOON_S
        self._n_asked += 1

    def answered(self) -> None:
        """Count a request out."""
        self._n_asked -= 1

    def send_soon(self, connection: Connection) -> None:
        """Let a connection `flush` at the end of this turn of the loop."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(connection)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.flush()
        self._sent_s = time.monotonic()
        if not self._is_awake:
            self._stay_awake()

    def _stay_awake(self) -> None:
        """Look for the next request without sleeping, where it should come soon and nothing else is to be done."""
        is_soon = self._comes_soon and time.monotonic() - self._sent_s < _SOON_S
        self._is_awake = is_soon and not self._n_asked
        if self._is_awake:
            asyncio.get_running_loop().call_soon(self._stay_awake)

    async def _closed_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while self._connections:
                    await self._all_closed.wait()
        except TimeoutError:
            return False
        return True

    def _tick(self) -> None:
        if not self._unchecked:
            self.date = formatdate(usegmt=True).encode()
            self._unchecked = list(self._connections)
            self._n_each_tick = len(self._unchecked) // _ROUND_TICKS + 1
        now_s = time.monotonic()
        for connection in self._unchecked[-self._n_each_tick :]:
            if connection in self._connections:
                connection.check(now_s)
        del self._unchecked[-self._n_each_tick :]
        self._clock = asyncio.get_running_loop().call_later(_ROUND_S / _ROUND_TICKS, self._tick)

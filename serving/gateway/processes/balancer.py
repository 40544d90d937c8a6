"""Gives each connection to the process that has the fewest: a client keeps its connection, and thereby its process.

A shared listener would leave that to whoever wakes first, and SO_REUSEPORT to a hash, which gives all four connections
of a proxy to one of two processes once in eight times, and resets what waits for a process that dies.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Iterable, Mapping

from serving.gateway.processes.process import Process

_AT_ONCE = 64
"""Connections that are given away before messages get their turn again."""
_TRIES_AGAIN_S = 0.02
"""How soon a connection is offered again that no process took."""
_PAUSES_S = 1.0
"""How soon connections are taken again after the system refused one."""

_log = logging.getLogger("rankyard.gateway")


class Balancer:
    """Takes the listener's connections, from `start` to `stop`; belongs to one event loop.

    processes: all there are at any time; those that are ready, and not late, come first. While none is open,
    connections wait.
    """

    def __init__(self, listener: socket.socket, processes: Mapping[int, Process]) -> None:
        self._listener = listener
        self._processes = processes
        self._waiting: deque[socket.socket] = deque()
        """Connections that no process has been given yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Take connections."""
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._admit)

    def stop(self) -> None:
        """Take no more, and refuse those that come."""
        if self._timer is not None:
            self._timer.cancel()
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        self._is_stopped = True
        self._refuse()

    def give(self, connections: Iterable[socket.socket]) -> None:
        """Give away connections that a process was given before it ended, and never took."""
        self._waiting.extend(connections)
        if self._is_stopped:
            self._refuse()
        elif self._waiting:
            self._pause(0)

    def _admit(self) -> None:
        for _ in range(_AT_ONCE):
            takers = sorted(
                (process for process in self._processes.values() if process.is_open),
                key=lambda process: (process.is_late, not process.is_ready, process.n_connections),
            )
            try:
                if takers and not self._waiting:
                    self._waiting.append(self._listener.accept()[0])
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # as when this process may open no more files
                _log.error("no connection can be taken: %s", error.strerror)
                self._pause(_PAUSES_S)
                return
            if not any(process.give(self._waiting[0]) for process in takers):
                self._pause(_TRIES_AGAIN_S)
                return
            self._waiting.popleft()

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self.start()
        self._admit()

    def _refuse(self) -> None:
        while self._waiting:
            self._waiting.pop().close()

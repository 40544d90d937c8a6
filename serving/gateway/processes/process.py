"""A gateway process as its supervisor sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

from serving.gateway.processes import channel
from serving.gateway.processes.channel import Channel, Message

_MODULE = "serving.gateway.processes.child"
_ENDS_S = 5.0
"""How long a process may take to end that has said its last word."""


class Process:
    """Started by `start`; belongs to one event loop.

    n_connections: that it was given and that have not ended. is_open: it takes connections. is_ready: its models
    answer; was_ready: they have. is_late: a report was not there in time, and is not yet. refused: why it could not
    serve.
    """

    def __init__(self, popen: subprocess.Popen[bytes], messages: Channel, connections: socket.socket) -> None:
        self.n_connections = 0
        self.is_open = self.is_ready = self.was_ready = self.is_late = False
        self.refused: channel.Refused | None = None
        self._popen = popen
        self._messages = messages
        self._connections = connections
        self._given: deque[socket.socket] = deque()
        self._report: asyncio.Future[None] | None = None

    @classmethod
    async def start(cls, start: channel.Start) -> Process:
        """Start a Python of its own, with the same modules, which Ctrl-C on a terminal does not reach."""
        messages, its_messages = socket.socketpair()
        connections, its_connections = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        with its_messages, its_connections:
            descriptors = (its_messages.fileno(), its_connections.fileno())
            popen = subprocess.Popen(  # noqa: S603 - this program
                [sys.executable, "-P", "-m", _MODULE, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": paths},
                pass_fds=descriptors,
                process_group=0,
            )
        connections.setblocking(False)
        process = cls(popen, await Channel.open(messages), connections)
        process.send(start)
        return process

    def give(self, connection: socket.socket) -> bool:
        """Give it a connection, which is kept until it has it; False where it takes none now."""
        try:
            socket.send_fds(self._connections, [b"c"], [connection.fileno()])
        except OSError:
            return False
        self.n_connections += 1
        self._given.append(connection)
        return True

    def taken(self) -> None:
        """It has the next of its connections."""
        self._given.popleft().close()

    def given_in_vain(self) -> list[socket.socket]:
        """The connections that it was given and never took."""
        return list(self._given)

    def send(self, message: Message) -> None:
        """Send a message."""
        self._messages.send(message)

    async def receive(self) -> Message | None:
        """Wait for its next message; None when it is no more."""
        return await self._messages.receive()

    def report(self) -> asyncio.Future[None]:
        """Ask what it has counted; done when that is there. A report that is awaited already is not asked for again."""
        if self._report is None or self._report.done():
            self._report = asyncio.get_running_loop().create_future()
            self.send(channel.AskReport())
        return self._report

    def reported(self) -> None:
        """Its report is there, or will never be."""
        self.is_late = False
        if self._report is not None and not self._report.done():
            self._report.set_result(None)

    def kill(self) -> None:
        """End it at once."""
        self._popen.kill()

    async def ended(self) -> str:
        """Wait for its end, and say what that was."""
        self.is_open = self.is_ready = False
        self.reported()
        self._connections.close()
        await self._messages.close()
        status = await asyncio.to_thread(self._waited)
        return f"exit status {status}" if status >= 0 else signal.Signals(-status).name

    def _waited(self) -> int:
        try:
            return self._popen.wait(_ENDS_S)
        except subprocess.TimeoutExpired:  # it says nothing any more, but does not end
            self._popen.kill()
            return self._popen.wait()

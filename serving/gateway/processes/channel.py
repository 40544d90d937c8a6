"""What a supervisor and its gateway processes tell each other, over a socket pair that ends with either of them."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

import msgspec
from msgspec import Struct

from serving.gateway.processes.totals import Family


class Start(Struct, tag=True, frozen=True):
    """To a process, first of all: what to serve. config: as JSON. number: what the log calls the process, from 1."""

    number: int
    config: bytes
    deployment: str
    runtime: str | None
    host: str


class Stop(Struct, tag=True, frozen=True):
    """To a process: finish what was begun, and end."""


class Opened(Struct, tag=True, frozen=True):
    """From a process: it takes connections."""


class Ready(Struct, tag=True, frozen=True):
    """From a process: its models answer; grpc: where, over gRPC."""

    models: list[str]
    grpc: str | None


class Leaving(Struct, tag=True, frozen=True):
    """From a process: it takes no more connections."""


class Taken(Struct, tag=True, frozen=True):
    """From a process: it has the next of the connections that it was given."""


class Closed(Struct, tag=True, frozen=True):
    """From a process: a connection that it was given has ended."""


class Refused(Struct, tag=True, frozen=True):
    """From a process, last of all: why it cannot serve; missing: the package that is not installed."""

    message: str
    exit_status: int
    code: str = ""
    field: str | None = None
    missing: str | None = None


class AskReport(Struct, tag=True, frozen=True):
    """To a process: what it has counted is wanted."""


class Report(Struct, tag=True, frozen=True):
    """From a process: what it has counted."""

    families: list[Family]


class AskTotals(Struct, tag=True, frozen=True):
    """From a process: somebody wants to know what all have counted."""


class TotalsText(Struct, tag=True, frozen=True):
    """To a process: what all have counted, in Prometheus' text format."""

    text: bytes


class Delivery(Struct, tag=True, frozen=True):
    """From a process that MLflow's webhook has reached, and to all others: its headers and its body."""

    headers: dict[bytes, bytes]
    body: bytes


Message = (
    Start
    | Stop
    | Opened
    | Ready
    | Leaving
    | Taken
    | Closed
    | Refused
    | AskReport
    | Report
    | AskTotals
    | TotalsText
    | Delivery
)

_LENGTH = struct.Struct(">I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Channel:
    """One end; belongs to one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Channel:
        """Use one end of a pair of stream sockets, which the channel then closes."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Message) -> None:
        """Send in the order of the calls; nothing happens where nobody listens any more."""
        if not self._writer.is_closing():
            payload = _encode(message)
            self._writer.write(_LENGTH.pack(len(payload)) + payload)

    async def receive(self) -> Message | None:
        """Wait for the next message; None at the end."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            payload = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None
        message: Message = _decode(payload)
        return message

    async def close(self) -> None:
        """Send what is left, and end."""
        with suppress(OSError):
            self._writer.close()
            await self._writer.wait_closed()

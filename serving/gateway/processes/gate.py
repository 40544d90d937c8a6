"""The entrance of a gateway process among others: its supervisor's end of the port."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterable

from models.errors import RankyardError, UnavailableError
from serving.gateway import telemetry, webhook
from serving.gateway.app import App
from serving.gateway.http import HttpServer
from serving.gateway.messages import Answer, Request
from serving.gateway.processes import channel
from serving.gateway.processes.channel import Channel
from serving.gateway.processes.totals import families

_TOTALS_WITHIN_S = 5.0
"""How long the sums over all processes may take."""
_AT_ONCE = 64
"""Connections that are taken before those that are open get their turn again."""

_log = logging.getLogger("rankyard.gateway")


class Gate:
    """Lets in the connections that the supervisor gives; belongs to one event loop.

    connections: where they come from. host: where gRPC is answered too.
    """

    has_siblings = True

    def __init__(self, supervisor: Channel, connections: socket.socket, host: str) -> None:
        self.host = host
        self._supervisor = supervisor
        self._connections = connections
        self._totals: asyncio.Future[bytes] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, server: HttpServer, app: App, stop: asyncio.Event) -> None:
        """Take connections, and hear the supervisor until it says stop, or is no more."""
        self._server, self._app = server, app
        app.metrics = self._metrics
        if app.webhook is not None:
            app.webhook.heard = self._heard
        server.ended = lambda: self._supervisor.send(channel.Closed())
        await server.start(None)
        self._connections.setblocking(False)
        asyncio.get_running_loop().add_reader(self._connections.fileno(), self._take)
        self._keep(asyncio.create_task(self._hear(stop)))
        self._keep(asyncio.create_task(self._leave(stop)))
        self._supervisor.send(channel.Opened())

    def ready(self, models: Iterable[str], grpc: str | None) -> None:
        """Tell the supervisor."""
        self._supervisor.send(channel.Ready(list(models), grpc))

    def _take(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_AT_ONCE):
            try:
                sent, descriptors, _, _ = socket.recv_fds(self._connections, 1, 1)
            except BlockingIOError:
                return
            if not sent:  # the supervisor has ended
                loop.remove_reader(self._connections.fileno())
                return
            self._supervisor.send(channel.Taken())
            if descriptors:
                self._keep(loop.create_task(self._server.take(socket.socket(fileno=descriptors[0]))))
            else:  # this process may open no more files: the kernel has closed it
                self._supervisor.send(channel.Closed())

    async def _hear(self, stop: asyncio.Event) -> None:
        while (message := await self._supervisor.receive()) is not None:
            if isinstance(message, channel.AskReport):
                self._supervisor.send(channel.Report(families(self._app.telemetry.collect())))
            elif isinstance(message, channel.TotalsText) and self._totals is not None:
                self._totals.set_result(message.text)
                self._totals = None
            elif isinstance(message, channel.Delivery):
                self._deliver(message)
            elif isinstance(message, channel.Stop):
                stop.set()
        if self._totals is not None:
            self._totals.cancel()
        stop.set()

    async def _leave(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._supervisor.send(channel.Leaving())

    async def _metrics(self) -> Answer:
        """What all processes have counted; several who ask at once share one answer."""
        if self._totals is None:
            self._totals = asyncio.get_running_loop().create_future()
            self._supervisor.send(channel.AskTotals())
        try:
            async with asyncio.timeout(_TOTALS_WITHIN_S):
                text = await asyncio.shield(self._totals)
        except TimeoutError:
            raise UnavailableError(
                f"the sums over all processes must be there within {_TOTALS_WITHIN_S:g} s, they are not; ask again"
            ) from None
        return Answer(text, content_type=telemetry.CONTENT_TYPE.encode())

    def _heard(self, request: Request) -> None:
        """Pass on what MLflow has told this process alone."""
        signed = {name: value for name, value in request.headers.items() if name in webhook.SIGNED}
        self._supervisor.send(channel.Delivery(signed, request.body))

    def _deliver(self, delivery: channel.Delivery) -> None:
        """Hear what MLflow has told another process; the signature is checked here too."""
        if self._app.webhook is None:
            return
        try:
            self._app.webhook.take(Request(time.monotonic(), "POST", headers=delivery.headers, body=delivery.body))
        except RankyardError as error:
            _log.info("a delivery that another process took is not taken: %s", error.message)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

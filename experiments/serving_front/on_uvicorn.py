"""`rankyard serve` with uvicorn as its HTTP server: python -m experiments.serving_front.on_uvicorn serve ...

The same application, event loop, parser and contract: early refusals, a deadline for the body, and work that is dropped
when the caller hangs up, each as ASGI has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import uvicorn

import rankyard
from models.errors import RankyardError, TooLargeError
from serving.gateway import gateway
from serving.gateway.errors import SlowBodyError
from serving.gateway.messages import Answer, Application, Request
from serving.gateway.parser import Limits

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Server(uvicorn.Server):
    """uvicorn's server, without its signals: the gateway has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class OnUvicorn:
    """Stands where `serving.gateway.http.HttpServer` stands."""

    def __init__(self, application: Application, limits: Limits, **_: object) -> None:
        self._application = application
        self._limits = limits
        settings = uvicorn.Config(
            self._serve,
            interface="asgi3",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            backlog=2048,
        )
        self._server = _Server(settings)

    @property
    def n_connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    async def start(self, listener: socket.socket) -> None:
        """Take connections."""
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def stop(self, _drain_s: float) -> None:
        """Finish what has been begun."""
        self._server.should_exit = True
        await self._task

    async def _serve(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        request = Request(time.monotonic(), scope["method"], scope["path"], dict(scope["headers"]))
        task = asyncio.current_task()
        hangup: asyncio.Future[Any] | None = None

        def give_up(done: asyncio.Future[Any]) -> None:
            if task is not None and not done.cancelled():
                request.is_given_up = True
                task.cancel()

        try:
            if request.method == "POST":
                await self._read(request, receive)
                hangup = asyncio.ensure_future(receive())
                hangup.add_done_callback(give_up)
            answer = self._application.answer(request)
            if not isinstance(answer, Answer):
                answer = await answer
        finally:
            if hangup is not None:
                hangup.remove_done_callback(give_up)
                hangup.cancel()
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", str(len(answer.body)).encode()),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _read(self, request: Request, receive: Receive) -> None:
        left_s = request.begun_s + self._application.allowed_s(request) - time.monotonic()
        n_bytes = int(request.headers.get(b"content-length", 0))
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(left_s):
                while n_bytes <= self._limits.max_body_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        request.is_given_up = True
                        return
                    chunks.append(message["body"])
                    n_bytes = max(n_bytes, sum(map(len, chunks)))
                    if not message["more_body"]:
                        request.body = b"".join(chunks)
                        return
        except TimeoutError:
            self._refuse(request, SlowBodyError("a body must arrive before its deadline"))
            return
        self._refuse(request, TooLargeError("a body is too large"))

    def _refuse(self, request: Request, fault: RankyardError) -> None:
        request.fault = fault


if __name__ == "__main__":
    gateway.HttpServer = OnUvicorn  # type: ignore[assignment,misc]
    sys.exit(rankyard.main())

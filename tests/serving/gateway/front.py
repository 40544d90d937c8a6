"""The HTTP server on a loopback port, before an application that does as the path says."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import h11
import uvloop

from models.errors import RankyardError
from serving.gateway.connection import Patience
from serving.gateway.http import HttpServer
from serving.gateway.messages import Answer, Request
from serving.gateway.parser import Limits

TIMEOUT_S = 60.0


def echo(request: Request) -> bytes:
    """What the application understood, as JSON."""
    fault = request.fault
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.items()}
    return json.dumps(
        {
            "method": request.method,
            "path": request.path,
            "headers": headers,
            "body": request.body.decode("latin-1"),
            "fault": None if fault is None else {"code": fault.code, "message": fault.message},
        }
    ).encode()


class Application:
    """Answers with what it was asked: at once, in another turn of the loop (`/later`), when it is told (`/held`)."""

    def __init__(self) -> None:
        self.allowed = TIMEOUT_S
        self.asked: list[Request] = []
        self.given_up: list[Request] = []
        self.has_asked = threading.Semaphore(0)
        self.has_given_up = threading.Semaphore(0)
        self.released = asyncio.Event()

    def allowed_s(self, _request: Request) -> float:
        return self.allowed

    def answer(self, request: Request):
        self.asked.append(request)
        self.has_asked.release()
        if isinstance(request.fault, RankyardError):
            return Answer(echo(request), request.fault.http_status)
        if request.path.startswith("/bytes/"):
            return Answer(b"x" * int(request.path.removeprefix("/bytes/")), content_type=b"text/plain")
        if request.path in ("/later", "/held"):
            return self._later(request)
        return Answer(echo(request), headers=[(b"x-first", b"1"), (b"x-second", b"2")])

    async def _later(self, request: Request) -> Answer:
        try:
            await (self.released.wait() if request.path == "/held" else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.given_up.append(request)
            self.has_given_up.release()
        return Answer(echo(request))


class Served:
    """A server in a thread of its own, and its application."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: HttpServer, application: Application) -> None:
        self._loop = loop
        self.server = server
        self.application = application
        self.address: tuple[str, int] = ("", 0)

    def call(self, function, *given):
        """Call a function in the server's thread."""
        done: Future = Future()
        self._loop.call_soon_threadsafe(lambda: done.set_result(function(*given)))
        return done.result(TIMEOUT_S)

    def stop(self, drain_s: float) -> Future:
        """Begin to stop."""
        return asyncio.run_coroutine_threadsafe(self.server.stop(drain_s), self._loop)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=TIMEOUT_S)

    def exchange(self, sent: bytes) -> tuple[int, dict]:
        """One request on a connection of its own; its status and what the application understood."""
        with self.connect() as caller:
            caller.sendall(sent)
            ((status, _, body),) = answers(caller, 1)
        return status, json.loads(body)


def answers(caller: socket.socket, n: int, methods: tuple[bytes, ...] = ()) -> list[tuple[int, dict[str, str], bytes]]:
    """Read `n` answers, by another library; AssertionError where the connection ends before the last."""
    client = h11.Connection(h11.CLIENT)
    found = []
    for number in range(n):
        method = methods[number] if methods else b"GET"
        client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        client.send(h11.EndOfMessage())
        status, headers, body = 0, {}, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                data = caller.recv(1 << 16)
                assert data, f"the connection ended after {number} answers and {body!r}"
                client.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                assert isinstance(event, h11.InformationalResponse), event
        found.append((status, headers, body))
        if number < n - 1:
            client.start_next_cycle()
    return found


def rest(caller: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    received = b""
    while data := caller.recv(1 << 16):
        received += data
    return received


def begun(address: tuple[str, int], n_bytes: int) -> socket.socket:
    """A connection whose server has read a query's head, and told its caller so; the body has yet to come."""
    caller = socket.create_connection(address, timeout=TIMEOUT_S)
    caller.sendall(post("/v1/understand", b"x" * n_bytes, "x-deadline-ms: 30000", "expect: 100-continue")[:-n_bytes])
    assert caller.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return caller


def is_refused(address: tuple[str, int]) -> bool:
    """Whether a port takes no more connections."""
    try:
        socket.create_connection(address, timeout=TIMEOUT_S).close()
    except ConnectionRefusedError:
        return True
    return False


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: a", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: a", *headers, "", ""]).encode()


@contextmanager
def serving(
    *,
    patience: Patience | None = None,
    max_connections: int = 100,
    max_bodies_bytes: int = 1 << 30,
    **limits: int,
) -> Iterator[Served]:
    """Serve until the end of the block, and then stop well."""
    loop = uvloop.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    listener = socket.create_server(("127.0.0.1", 0))

    async def start() -> Served:
        application = Application()
        server = HttpServer(
            application,
            Limits(**{"max_body_bytes": 1_000_000} | limits),
            max_connections=max_connections,
            max_bodies_bytes=max_bodies_bytes,
            patience=patience,
        )
        await server.start(listener)
        return Served(loop, server, application)

    served = asyncio.run_coroutine_threadsafe(start(), loop).result(TIMEOUT_S)
    served.address = listener.getsockname()
    try:
        yield served
    finally:
        served.stop(0.0).result(TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        running.join(TIMEOUT_S)
        loop.close()
        listener.close()
    assert served.server.n_connections == 0

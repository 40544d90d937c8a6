"""The gateway as a process: a port, a runtime, the application, and an end that finishes what was begun."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
import uvloop

from models.errors import ConfigError, WorkspaceError
from serving.gateway.app import App
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, Roles
from serving.gateway.following import Following
from serving.gateway.telemetry import Telemetry
from serving.runtime.fallback import FallbackRuntime
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import Runtime

_MAX_PORT = 65_535
_BACKLOG = 2048
_KEEP_ALIVE_S = 75
"""How long an idle connection stays open; load balancers reuse theirs for about a minute."""

Say = Callable[[str], None]


def run(config: GatewayConfig, deployment: Path, runtime_name: str | None, host: str, port: int, *, say: Say) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun, for at most `config.drain_s`.

    runtime_name: `onnx` or `triton`, None for the configuration's. The port is taken before any model is loaded (0: a
    free one); `say` gets one line with the address once every model is. WorkspaceError where the port is taken, and
    whatever the configuration's models are refused for.
    """
    with closing(_bind(host, port)) as listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, deployment, runtime_name, listener, say))


def make_runtime(config: GatewayConfig, name: str | None = None) -> Runtime:
    """Make the runtime `name`, or the one that the configuration names."""
    settings = config.runtime
    if (name or settings.kind) == "onnx":
        return OnnxRuntime(settings.n_workers, settings.variant, settings.scorers)
    # Imported here: gRPC costs half a second at start, which an embedded gateway need not pay.
    from serving.runtime.triton import TritonRuntime

    if settings.variant is not None:
        raise ConfigError(
            f"a Triton server runs what was deployed, runtime.variant must be left out, got {settings.variant}; "
            "leave it out",
            field="runtime.variant",
        )
    if settings.scorers is not None:
        raise ConfigError(
            "a Triton server scores with what was deployed, runtime.scorers must be left out; leave it out",
            field="runtime.scorers",
        )
    if settings.triton_url is None:
        raise ConfigError(
            "runtime.triton_url must name a Triton server's gRPC endpoint, none is named and none runs in the "
            "workspace; start one with `rankyard triton up`",
            field="runtime.triton_url",
        )
    triton = TritonRuntime(
        settings.triton_url, **({} if settings.n_workers is None else {"n_workers": settings.n_workers})
    )
    return FallbackRuntime(triton, OnnxRuntime()) if settings.fallback else triton


async def _serve(
    config: GatewayConfig, deployment: Path, runtime_name: str | None, listener: socket.socket, say: Say
) -> None:
    telemetry = Telemetry()
    app = App(config, telemetry)
    server = _Server(_settings(app, config), app)

    async def open_(roles: Roles) -> Dataplane:
        # Made inside the loop that will use it: gRPC's channel keeps the one that it was made in.
        runtime = make_runtime(config, runtime_name)
        try:
            return await Dataplane.open(config, roles, runtime, telemetry)
        except BaseException:
            await runtime.close()
            raise

    async def follow() -> None:
        opened = await following.start()
        # What is loaded now stays: the garbage collector need not look through it again.
        gc.collect()
        gc.freeze()
        say(f"ready on {_address(listener)}, serving {', '.join(opened.roles.models)}")
        await following.run()

    following = Following(app, config, deployment, open_, telemetry)
    with _stopping(server):
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        task = asyncio.create_task(follow())
        try:
            await asyncio.wait({serving, task}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            await serving
        finally:
            server.should_exit = True
            task.cancel()
            await asyncio.gather(serving, task, return_exceptions=True)
            await following.close()


class _Server(uvicorn.Server):
    """uvicorn's server, whose application is told when it stops taking connections."""

    def __init__(self, settings: uvicorn.Config, app: App) -> None:
        super().__init__(settings)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.is_draining = True
        await super().shutdown(sockets)


def _settings(app: App, config: GatewayConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(config.drain_s)),
        backlog=_BACKLOG,
    )


@contextmanager
def _stopping(server: uvicorn.Server) -> Iterator[None]:
    """Let signals stop the server, whenever they come.

    uvicorn raises the signals it got once more when it has ended, for the handlers that stood before it; with these in
    their place the process ends with status 0.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bind(host: str, port: int) -> socket.socket:
    """Take the port, and listen at once: only that keeps another process from taking it too."""
    if not 0 <= port <= _MAX_PORT:  # getaddrinfo would take it modulo 65,536
        raise WorkspaceError(f"a port must be from 0 to {_MAX_PORT}, got {port}; name another one with --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise WorkspaceError(
            f"a gateway must have an address of this machine, got {host}:{port} ({error.strerror}); "
            "name another one with --host"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise WorkspaceError(
            f"a gateway must have a port of its own, {host}:{port} cannot be taken ({error.strerror}); "
            "name another one with --port, or 0 for any free one"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

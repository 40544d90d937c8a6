"""A gateway: a runtime, the application, an entrance, and an end that finishes what was begun."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from models.errors import ConfigError
from models.text_cache import TextCache
from serving.gateway.app import App
from serving.gateway.catalogue import Preparation, TextSeries
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, Roles
from serving.gateway.following import Following
from serving.gateway.http import HttpServer
from serving.gateway.observer import open_observer
from serving.gateway.parser import Limits
from serving.gateway.port import address
from serving.gateway.server import Say, ready, signalled
from serving.gateway.telemetry import Telemetry
from serving.gateway.webhook import Webhook
from serving.runtime.fallback import FallbackRuntime
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import Runtime

_OTHER_FILES = 256
"""Descriptors beside those of connections: models, the log, Triton, Redis."""
_GARBAGE = 20_000
"""By how many objects what is held must grow before garbage is looked for, which holds up every request. Requests leave
none (those over gRPC five small objects, which are grpcio's own). With Python's own 700, all that waits under overload
was looked through once a second, for 10 to 15 ms."""
_LOOKS_EVERY_S = 1.0
"""How often a catalogue's file is looked at where the deployment is not followed."""
_TRITONS_OWN = {
    "variant": "runs what was deployed",
    "scorers": "scores with what was deployed",
    "n_alone_threads": "has its own threads",
}


class Entrance(Protocol):
    """Where requests come from, and who hears that they may.

    host: where gRPC is answered too; has_siblings: other processes answer at the same port.
    """

    host: str
    has_siblings: bool

    async def open(self, server: HttpServer, app: App, stop: asyncio.Event) -> None:
        """Let connections in, and set `stop` when the gateway is to end."""

    def ready(self, models: Iterable[str], grpc: str | None) -> None:
        """Hear that all models answer; grpc: where, over gRPC."""


class Door:
    """The entrance of a gateway that has its port for itself."""

    has_siblings = False

    def __init__(self, listener: socket.socket, say: Say) -> None:
        self.host = listener.getsockname()[0]
        self._listener = listener
        self._say = say

    async def open(self, server: HttpServer, _app: App, _stop: asyncio.Event) -> None:
        """Take the listener's connections."""
        await server.start(self._listener)

    def ready(self, models: Iterable[str], grpc: str | None) -> None:
        """Say where who is answered."""
        self._say(ready(address(self._listener), grpc, models))


async def serve(config: GatewayConfig, deployment: Path, runtime_name: str | None, entrance: Entrance) -> None:
    """Serve until SIGTERM or SIGINT, or until the entrance says so; as `serving.gateway.server.run`."""
    telemetry = Telemetry()
    texts = TextCache(config.cache.max_text_bytes)
    telemetry.add(TextSeries(texts))
    observer = open_observer(config, telemetry)
    app = App(config, telemetry, observer)
    server = HttpServer(
        app,
        Limits(config.limits.max_body_bytes),
        max_connections=_connections(config.limits.max_connections),
        max_bodies_bytes=config.limits.max_bodies_bytes,
    )
    telemetry.connections.set_function(lambda: server.n_connections)

    async def open_(roles: Roles) -> Dataplane:
        # Made inside the loop that will use it: gRPC's channel keeps the one that it was made in.
        runtime = make_runtime(config, runtime_name, telemetry)
        try:
            return await Dataplane.open(config, roles, runtime, telemetry, texts)
        except BaseException:
            await runtime.close()
            raise

    async def follow() -> None:
        grpc = None if rpc is None else await rpc.start(entrance.host)
        if preparation is not None:
            await preparation.start()
        opened = await following.start()
        # What is loaded now stays: the garbage collector need not look through it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        entrance.ready(opened.roles.models, grpc)
        await asyncio.gather(following.run(), *([] if preparation is None else [preparation.run()]))

    rpc = None
    if config.grpc_port is not None:
        # Imported here: gRPC takes 16 MB.
        from serving.gateway.open_inference.rpc import GrpcServer

        rpc = GrpcServer(app, config, observer, config.grpc_port, shares_port=entrance.has_siblings)
    preparation = None
    if config.catalogue is not None:
        preparation = Preparation(app, config.catalogue, config.follow_s or _LOOKS_EVERY_S, texts)
    following = Following(app, config, deployment, open_, telemetry)
    if config.webhook is not None:
        app.webhook = Webhook(config.webhook, following.expect)
    with signalled() as stop:
        await entrance.open(server, app, stop)
        stopped, task = asyncio.create_task(stop.wait()), asyncio.create_task(follow())
        try:
            await asyncio.wait({stopped, task}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                await stopped
        finally:
            app.is_draining = True
            await asyncio.gather(*(one.stop(config.drain_s) for one in (server, rpc) if one is not None))
            stopped.cancel()
            task.cancel()
            await asyncio.gather(stopped, task, return_exceptions=True)
            await following.close()
            await asyncio.to_thread(observer.close)


def make_runtime(config: GatewayConfig, name: str | None = None, telemetry: Telemetry | None = None) -> Runtime:
    """Make the runtime `name`, or the one that the configuration names."""
    settings = config.runtime
    if (name or settings.kind) == "onnx":
        return OnnxRuntime(
            settings.n_workers or _n_cores(config),
            settings.variant,
            settings.scorers,
            settings.n_alone_threads,
            yields=config.catalogue is None,  # whose thread steps back too, but not so far
        )
    # Imported here: gRPC costs half a second at start, which an embedded gateway need not pay.
    from serving.runtime.triton import TritonRuntime

    for field, does in _TRITONS_OWN.items():
        if (value := getattr(settings, field)) is not None:
            raise ConfigError(
                f"a Triton server {does}, runtime.{field} must be left out, got {value}; leave it out",
                field=f"runtime.{field}",
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
    if not settings.fallback:
        return triton
    return FallbackRuntime(
        triton,
        OnnxRuntime(_n_cores(config), n_alone_threads=1),
        settings.hedge_share,
        (telemetry or Telemetry()).rerouted,
    )


def _connections(n_wanted: int) -> int:
    """Let this process open as many connections; how many it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return n_wanted if soft == resource.RLIM_INFINITY else max(1, min(n_wanted, soft - _OTHER_FILES))


def _n_cores(config: GatewayConfig) -> int:
    """Cores that one of the gateway's processes may keep busy with models."""
    return max(1, len(os.sched_getaffinity(0)) // config.processes)

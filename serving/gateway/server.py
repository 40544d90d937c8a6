"""The gateway as a program: its port, its log, its signals; what answers is loaded when the port is taken."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import uvloop

from serving.gateway import logs
from serving.gateway.config import GatewayConfig
from serving.gateway.port import bind

Say = Callable[[str], None]


def run(config: GatewayConfig, deployment: Path, runtime_name: str | None, host: str, port: int, *, say: Say) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun, for at most `config.drain_s`.

    runtime_name: `onnx` or `triton`, None for the configuration's. The port is taken before any model is loaded (0: a
    free one); `say` gets one line with the address once every model is. WorkspaceError where the port is taken, and
    whatever the configuration's models are refused for.
    """
    with (
        logs.written(config.logs),
        closing(bind(host, port)) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        # Imported here: a supervisor needs no models, and most gateways no supervisor.
        if config.processes > 1:
            from serving.gateway.processes.supervisor import supervise

            runner.run(supervise(config, deployment, runtime_name, listener, say))
        else:
            from serving.gateway.gateway import Door, serve

            runner.run(serve(config, deployment, runtime_name, Door(listener, say)))


def ready(http: str, grpc: str | None, models: Iterable[str]) -> str:
    """Say where who is answered."""
    return f"ready on {http if grpc is None else f'{http} and {grpc}'}, serving {', '.join(models)}"


@contextmanager
def signalled() -> Iterator[asyncio.Event]:
    """Give the event that SIGTERM and SIGINT set; only a program's main thread is sent them."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)

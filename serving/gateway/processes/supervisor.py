"""Keeps a gateway's processes running, carries word from one to the others, sums up what they count, ends with them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import generate_latest

from models.errors import RankyardError
from serving.gateway.config import GatewayConfig
from serving.gateway.port import address, reserve
from serving.gateway.processes import channel
from serving.gateway.processes.balancer import Balancer
from serving.gateway.processes.process import Process
from serving.gateway.processes.totals import Totals, families
from serving.gateway.server import Say, ready, signalled

_ITSELF = 0
"""The supervisor's number among those that count; its processes' begin with 1."""
_REPORTS_WITHIN_S = 0.5
"""How long a scrape waits for processes; what a late one told before counts then."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
"""How long a process is down before it is started again: twice as long each time, where it does not last."""
_LASTS_S = 60.0
_MAX_DELIVERIES = 64
"""Words of MLflow that a process hears which starts later."""
_ENDS_S = 5.0
"""How long a process may take to end beyond what it may drain."""

_log = logging.getLogger("rankyard.gateway")


async def supervise(
    config: GatewayConfig, deployment: Path, runtime_name: str | None, listener: socket.socket, say: Say
) -> None:
    """Serve by `config.processes` processes; as `serving.gateway.server.run`."""
    host = listener.getsockname()[0]
    if config.grpc_port is None:
        await _Supervisor(config, deployment, runtime_name, listener, say).run()
        return
    with reserve(host, config.grpc_port) as reserved:
        config = config.model_copy(update={"grpc_port": reserved.getsockname()[1]})
        await _Supervisor(config, deployment, runtime_name, listener, say).run()


class _Supervisor:
    def __init__(
        self, config: GatewayConfig, deployment: Path, runtime_name: str | None, listener: socket.socket, say: Say
    ) -> None:
        self._config = config
        self._deployment = deployment
        self._runtime_name = runtime_name
        self._host, self._address = listener.getsockname()[0], address(listener)
        self._say = say
        self._processes: dict[int, Process] = {}
        self._balancer = Balancer(listener, self._processes)
        self._is_complete = False
        """Whether all processes have been ready at a time."""
        self._stopping = asyncio.Event()
        self._deliveries: deque[channel.Delivery] = deque(maxlen=_MAX_DELIVERIES)
        self._tasks: set[asyncio.Task[None]] = set()
        disable_created_metrics()  # type: ignore[no-untyped-call] # as in `telemetry`
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)
        Gauge("rankyard_processes", "Processes whose models answer.", registry=self._own).set_function(
            lambda: sum(process.is_ready for process in self._processes.values())
        )
        self._restarts = Counter(
            "rankyard_process_restarts", "Processes that were started because one had ended.", registry=self._own
        )
        self._totals = Totals()
        self._registry = CollectorRegistry()
        self._registry.register(self._totals)

    async def run(self) -> None:
        """Serve until a signal; whatever a process is refused for at the start."""
        self._balancer.start()
        with signalled() as stop:
            stopped = asyncio.create_task(stop.wait())
            keeping = [asyncio.create_task(self._keep(number + 1)) for number in range(self._config.processes)]
            try:
                await asyncio.wait({stopped, *keeping}, return_when=asyncio.FIRST_COMPLETED)
                for task in keeping:
                    if task.done():
                        task.result()
            finally:
                stopped.cancel()
                await self._end(keeping)

    async def _keep(self, number: int) -> None:
        """Keep one process running; RankyardError where it cannot serve from the beginning."""
        pause_s = 0.0
        while True:
            begun_s = time.monotonic()
            why = await self._live(number)
            if self._stopping.is_set():
                return
            has_lasted = time.monotonic() - begun_s > _LASTS_S
            pause_s = _FIRST_PAUSE_S if has_lasted or not pause_s else min(_LONGEST_PAUSE_S, 2 * pause_s)
            _log.error("process %d has ended (%s); another one is started in %g s", number, why, pause_s)
            self._restarts.inc()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                    return

    async def _live(self, number: int) -> str:
        """Run a process to its end, and say why it ended."""
        try:
            process = self._processes[number] = await Process.start(self._start(number))
        except OSError as error:  # as when there is no memory
            if not self._is_complete:
                raise
            return f"it cannot be started: {error.strerror}"
        if self._stopping.is_set():
            process.kill()
        for delivery in self._deliveries:
            process.send(delivery)
        await self._hear(number, process)
        del self._processes[number]
        self._balancer.give(process.given_in_vain())
        how = await process.ended()
        self._totals.end(number)
        if not (self._is_complete or process.was_ready or self._stopping.is_set()):
            raise _failed(process, number, how)
        return how if process.refused is None else process.refused.message

    def _start(self, number: int) -> channel.Start:
        config = self._config.model_dump_json(exclude_unset=True).encode()
        return channel.Start(number, config, str(self._deployment), self._runtime_name, self._host)

    async def _hear(self, number: int, process: Process) -> None:
        """Do what a process says, until it is no more."""
        while (message := await process.receive()) is not None:
            if isinstance(message, channel.Taken):
                process.taken()
            elif isinstance(message, channel.Closed):
                process.n_connections -= 1
            elif isinstance(message, channel.Report):
                self._totals.take(number, message.families)
                process.reported()
            elif isinstance(message, channel.AskTotals):
                task = asyncio.create_task(self._tell(process))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif isinstance(message, channel.Delivery):
                self._deliveries.append(message)
                for other in self._processes.values():
                    if other is not process:
                        other.send(message)
            elif isinstance(message, channel.Opened):
                process.is_open = True
            elif isinstance(message, channel.Ready):
                self._ready(number, process, message)
            elif isinstance(message, channel.Leaving):
                process.is_open = process.is_ready = False
            elif isinstance(message, channel.Refused):
                process.refused = message

    def _ready(self, number: int, process: Process, told: channel.Ready) -> None:
        process.is_ready = process.was_ready = True
        if self._is_complete:
            _log.warning("process %d is ready, after the one that has ended", number)
        elif sum(one.is_ready for one in self._processes.values()) == self._config.processes:
            self._is_complete = True
            line = ready(self._address, told.grpc, told.models)
            self._say(f"{line}, by {self._config.processes} processes")

    async def _tell(self, process: Process) -> None:
        """Tell a process what all have counted."""
        reports = {one.report(): one for one in self._processes.values() if one.is_open}
        if reports:
            _, late = await asyncio.wait(reports, timeout=_REPORTS_WITHIN_S)
            for report in late:
                reports[report].is_late = True
        self._totals.take(_ITSELF, families(self._own.collect()))
        process.send(channel.TotalsText(generate_latest(self._registry)))

    async def _end(self, keeping: list[asyncio.Task[None]]) -> None:
        """Take no more connections, let every process finish what it has begun, and end with the last."""
        self._stopping.set()
        self._balancer.stop()
        for process in self._processes.values():
            if process.was_ready:
                process.send(channel.Stop())
            else:  # it has begun nothing
                process.kill()
        await asyncio.wait(keeping, timeout=2 * self._config.drain_s + _ENDS_S)
        for number, process in self._processes.items():
            _log.error("process %d did not end in time; what it was doing is lost", number)
            process.kill()
        await asyncio.gather(*keeping, return_exceptions=True)


def _failed(process: Process, number: int, how: str) -> RankyardError | ModuleNotFoundError:
    """Why a process could not serve, as it would have been said by one process alone."""
    refused = process.refused
    if refused is None:
        return RankyardError(f"a gateway process must start, process {number} ended ({how}); its log says why")
    if refused.missing is not None:
        return ModuleNotFoundError(refused.message, name=refused.missing)
    error = RankyardError(refused.message, field=refused.field)
    error.code, error.exit_status = refused.code, refused.exit_status
    return error

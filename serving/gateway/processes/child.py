"""A gateway process among others: a supervisor brings its connections, and is told what it counts and hears.

python -m serving.gateway.processes.child DESCRIPTOR DESCRIPTOR    as the supervisor starts it
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import uvloop

from models.errors import RankyardError
from serving.gateway import logs
from serving.gateway.config import GatewayConfig
from serving.gateway.processes import channel
from serving.gateway.processes.channel import Channel


def main() -> int:
    """Serve until the supervisor, or a signal, says otherwise; gives the exit status."""
    messages, connections = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    with connections, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(messages, connections))


async def _run(messages: socket.socket, connections: socket.socket) -> int:
    supervisor = await Channel.open(messages)
    start = await supervisor.receive()
    if not isinstance(start, channel.Start):
        return 0  # it has ended before it could say a word
    config = GatewayConfig.model_validate_json(start.config)
    status = 0
    with logs.written(config.logs, start.number):
        try:
            # Imported here: a package that is not installed is told to the supervisor.
            from serving.gateway.gateway import serve
            from serving.gateway.processes.gate import Gate

            gate = Gate(supervisor, connections, start.host)
            await serve(config, Path(start.deployment), start.runtime, gate)
        except RankyardError as error:
            status = error.exit_status
            supervisor.send(channel.Refused(error.message, status, error.code, error.field))
        except ModuleNotFoundError as error:
            status = 1
            supervisor.send(channel.Refused(str(error), status, missing=error.name))
    await supervisor.close()
    return status


if __name__ == "__main__":
    sys.exit(main())

"""A server that answers `{}` to everything: python trivial_server.py PORT."""

import asyncio
import re
import sys

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Trivial(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport):
        """Begin."""
        self._transport, self._received = transport, b""

    def data_received(self, chunk):
        """Answer every request that is whole."""
        self._received += chunk
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._received, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self._received) < whole:
                return
            self._received = self._received[whole:]
            self._transport.write(ANSWER)


async def main():
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


uvloop.run(main())

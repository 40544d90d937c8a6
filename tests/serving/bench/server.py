"""A server that answers as a test wants, in a thread of its own."""

import asyncio
import contextlib
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

Answer = Callable[[int, bytes], Awaitable[bytes | None]]
"""From a request's number and bytes to the answer's; None drops the connection."""


class Server:
    def __init__(self, answer: Answer, tls: ssl.SSLContext | None) -> None:
        self.n_requests = 0
        self.n_open = 0
        self.most_open = 0
        self.bodies: list[bytes] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._answer = answer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls), self._loop
        )
        self._server = listening.result()
        self.url = f"http{'' if tls is None else 's'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
                number, self.n_requests = self.n_requests, self.n_requests + 1
                self.n_open += 1
                self.most_open = max(self.most_open, self.n_open)
                self.bodies.append(body)
                answer = await self._answer(number, body)
                self.n_open -= 1
                if answer is None:
                    break
                writer.write(answer)
                if b"connection: close" in answer:
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self._writers.discard(writer)

    async def _end(self) -> None:
        self._server.close()
        for _ in range(50):  # turns: what was accepted last becomes a task of its own first, and transports close later
            mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in mine:
                task.cancel()
            await asyncio.gather(*mine, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.sleep(0)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(answer, tls)
    try:
        yield server
    finally:
        server.close()

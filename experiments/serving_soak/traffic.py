"""What the soak sends: questions in their shares, requests that are wrong, and callers who go away."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from itertools import count, cycle
from typing import Any
from urllib.parse import urlsplit

from serving.bench.lists import COLUMNS, ROWS
from serving.bench.queries import generated, numbers
from serving.bench.traffic import post, rank_body, requests, understand_body

REFUSALS = frozenset({"400", "404", "405", "413", "422"})
"""What the wrong requests are to be answered with; any other failure is the gateway's."""

_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing resets the connection."""


def mixture(url: str, features: list[str], config: Mapping[str, Any]) -> Iterator[bytes]:
    """Requests without end, each kind by its share."""
    text = generated(0)
    understand = requests(
        post(url, "/v1/understand", understand_body(text)),
        numbers(0, zipf=config["zipf"]["exponent"], n_distinct=config["zipf"]["n_distinct"]),
    )
    sizes = config["rank"]["candidates"]
    forms = [
        requests(
            post(url, "/v1/rank", rank_body(text, features, sizes, form=form, seed=0, top_k=10, with_texts=True)),
            count(),
        )
        for form in (ROWS, COLUMNS)
    ]
    rank = (next(form) for form in cycle(forms))
    kinds = {"understand": understand, "rank": rank, "wrong": cycle(wrong(url))}
    generator = random.Random(0)
    names, shares = zip(*config["shares"].items(), strict=True)
    while True:
        yield next(kinds[generator.choices(names, shares)[0]])


def wrong(url: str) -> list[bytes]:
    """Requests that must be refused, one of each kind."""
    host = urlsplit(url).netloc

    def body(path: str, content: bytes, **headers: str) -> bytes:
        return post(url, path, lambda _: content, list(headers.items()))(0)

    return [
        body("/v1/understand", b'{"query": '),
        body("/v1/understand", b"{}"),
        body("/v1/understand", b'{"query": 7}'),
        body("/v1/understand", b'{"query": "%b"}' % (b"x" * 2_000)),
        body("/v1/understand", b'{"query": "a"}', **{"x-deadline-ms": "soon"}),
        body("/v1/rank", b'{"query": {"text": "a"}, "candidates": [{"id": "a", "features": {"no such": 1}}]}'),
        body("/v1/rank", b'{"query": {"text": "a"}, "candidates": {"ids": ["a", "b"], "features": {"price": [1]}}}'),
        body("/v1/nothing", b"{}"),
        f"GET /v1/rank HTTP/1.1\r\nhost: {host}\r\n\r\n".encode(),
    ]


class Hangups(threading.Thread):
    """Goes away all the time: at once, in the midst of a body, or before the answer, politely or by a reset."""

    def __init__(self, url: str, sent: Iterator[bytes], every_s: float) -> None:
        super().__init__(daemon=True)
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._sent, self._every_s = sent, every_s
        self.stopping = threading.Event()
        self.n_hangups = 0

    def run(self) -> None:
        """Hang up until told to stop."""
        for number, request in enumerate(self._sent):
            if self.stopping.wait(self._every_s):
                return
            length = (0, len(request) // 2, len(request))[number % 3]
            with contextlib.suppress(OSError), socket.create_connection(self._address, timeout=5) as caller:
                if number % 2:
                    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                caller.sendall(request[:length])
            self.n_hangups += 1

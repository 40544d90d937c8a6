"""What a scenario sends: whole HTTP requests as bytes, made before they are due."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

import numpy as np

from serving.bench import lists
from serving.bench.queries import Text
from serving.calls import ARROW, BINARY, JSON
from serving.tensors import HEADER_LENGTH

Make = Callable[[int], bytes]
"""The request of a number from 0."""

_POOL = 32
_GOLDEN_RATIO_32 = 2_654_435_761  # Knuth's multiplicative hash


def requests(make: Make, numbers: Iterator[int]) -> Iterator[bytes]:
    """Requests without end."""
    return map(make, numbers)


def post(
    url: str,
    path: str,
    body: Callable[[int], bytes],
    headers: Sequence[tuple[str, str]] = (),
    *,
    content_type: str = JSON,
) -> Make:
    """Make POST requests; one whole request is one piece of bytes, written at once."""
    parts = urlsplit(url)
    given = "".join(f"{name}: {value}\r\n" for name, value in (("content-type", content_type), *headers))
    head = f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nhost: {parts.netloc}\r\n{given}content-length: "
    start = head.encode()

    def make(number: int) -> bytes:
        content = body(number)
        return b"%b%d\r\n\r\n%b" % (start, len(content), content)

    return make


def understand_body(text: Text) -> Callable[[int], bytes]:
    """Bodies of POST /v1/understand."""
    return lambda number: b'{"query":%b}' % json.dumps(text(number)).encode()


def rank_body(
    text: Text,
    features: Sequence[str],
    sizes: Sequence[int],
    *,
    form: str,
    seed: int,
    top_k: int | None = None,
    with_texts: bool = False,
) -> Callable[[int], bytes]:
    """Bodies that rank candidates by value: lists of `sizes` in turn, every one unlike all others.

    32 lists of each size are written before the load begins (`serving.bench.lists`). form: ROWS, COLUMNS, ARROW, or
    BINARY, which has no texts and no top_k. InputError where a form needs a package which is not there.
    """
    generator = np.random.default_rng(seed)

    def filled(size: int) -> lists.Fill:
        texts = [text(int(number)) for number in generator.integers(0, 2**31, size)] if with_texts else None
        return lists.written(lists.drawn(features, size, generator, texts), form, top_k)

    pools = [[filled(size) for _ in range(_POOL)] for size in sizes]

    def body(number: int) -> bytes:
        pool = pools[number % len(pools)]
        return pool[number // len(pools) % _POOL](text(number), number % 1_000_000 / 1_000_000)

    return body


def rank(
    url: str, body: Callable[[int], bytes], form: str, *, model: str = "", headers: Sequence[tuple[str, str]] = ()
) -> Make:
    """Make requests of `rank_body`'s bodies. model: the ranker's name, which BINARY alone needs."""
    if form == lists.BINARY:
        named = (*headers, (HEADER_LENGTH, str(lists.HEAD_BYTES)))
        return post(url, f"/v2/models/{model}/infer", body, named, content_type=BINARY)
    return post(url, "/v1/rank", body, headers, content_type=ARROW if form == lists.ARROW else JSON)


def parts(request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Give a request's path, headers and body."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first.split(" ")[1], dict(line.split(": ", 1) for line in lines), body


def mixed(understand: Make, rank: Make, rank_share: float) -> Make:
    """Rank requests in a share of the numbers, spread evenly, queries in the others."""

    def make(number: int) -> bytes:
        is_rank = number * _GOLDEN_RATIO_32 % 2**32 < rank_share * 2**32
        return rank(number) if is_rank else understand(number)

    return make

"""What a scenario sends: whole HTTP requests as bytes, made before they are due."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

import numpy as np

from serving.bench.queries import Text

Make = Callable[[int], bytes]
"""The request of a number from 0."""

ROWS, COLUMNS = "rows", "columns"

_POOL = 32
_MISSING = 0.05
_PLACE = "#"
"""Stands, while a body is written, for the number that is filled in when it is sent."""
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
    content_type: str = "application/json",
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
    """Bodies of POST /v1/rank: candidates by value, lists of `sizes` in turn, every one unlike all others.

    A body of 100 candidates takes a millisecond to write, so 32 of each size are written before the load begins;
    what makes each request its own is the query's text and one feature's value, filled in as it is sent.
    """
    generator = np.random.default_rng(seed)
    pools = [
        [_template(text, features, size, generator, form, with_texts=with_texts) for _ in range(_POOL)]
        for size in sizes
    ]
    end = b"" if top_k is None else b',"top_k":%d' % top_k

    def body(number: int) -> bytes:
        pool = pools[number % len(pools)]
        before, after = pool[number // len(pools) % _POOL]
        value = b"%.6f" % (number % 1_000_000 / 1_000_000) if features else b""
        query = json.dumps(text(number)).encode()
        return b'{"candidates":%b%b%b,"query":{"text":%b}%b}' % (before, value, after, query, end)

    return body


def mixed(understand: Make, rank: Make, rank_share: float) -> Make:
    """Rank requests in a share of the numbers, spread evenly, queries in the others."""

    def make(number: int) -> bytes:
        is_rank = number * _GOLDEN_RATIO_32 % 2**32 < rank_share * 2**32
        return rank(number) if is_rank else understand(number)

    return make


def _template(
    text: Text, features: Sequence[str], size: int, generator: np.random.Generator, form: str, *, with_texts: bool
) -> tuple[bytes, bytes]:
    """Candidates as JSON before and after the place of the last candidate's last feature."""
    values_DF = np.round(generator.random((size, len(features))), 6).astype(object)
    values_DF[generator.random(values_DF.shape) < _MISSING] = None
    if features:
        values_DF[-1, -1] = _PLACE
    ids = [f"p{place}" for place in range(size)]
    texts = [text(int(number)) for number in generator.integers(0, 2**31, size)] if with_texts else None
    if form == COLUMNS:
        candidates: object = {"ids": ids, **({"texts": texts} if texts else {})} | {
            "features": dict(zip(features, values_DF.T.tolist(), strict=True))
        }
    else:
        candidates = [
            {"id": identity, **({"text": texts[row]} if texts else {})}
            | {"features": dict(zip(features, values_DF[row].tolist(), strict=True))}
            for row, identity in enumerate(ids)
        ]
    before, _, after = json.dumps(candidates, separators=(",", ":")).encode().partition(f'"{_PLACE}"'.encode())
    return before, after

"""Bodies that travel compressed: gzip, or deflate in its zlib form (RFC 9110, 8.4.1)."""

from __future__ import annotations

import re
import zlib

from models.errors import TooLargeError
from serving.gateway.errors import MalformedEncodingError, MediaError, quoted

_WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""zlib's `wbits`, which also says in what form."""
_REFUSED = re.compile(rb"\s*q\s*=\s*0(\.0*)?\s*")
_LEVEL = 1
_LEAST_BYTES = 1024
"""A shorter answer is not worth its compression."""


def decoded(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """Decompress a request's body as its `Content-Encoding` says, never to more than `max_bytes`.

    MediaError for an encoding that is not known, MalformedEncodingError for a body that is not in it, TooLargeError.
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    if name not in _WINDOW_BITS:
        raise MediaError(
            f"content-encoding must be gzip, deflate or identity, got {quoted(encoding)}; send one of those"
        )
    reader = zlib.decompressobj(_WINDOW_BITS[name])
    try:
        plain = reader.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedEncodingError(
            f"a body must be in {name.decode()} as it says, got: {error}; correct it"
        ) from error
    if len(plain) > max_bytes:
        raise TooLargeError(
            f"a body must have at most {max_bytes} bytes when it is decompressed, this one has more; send less at once",
            field="content-encoding",
        )
    if not reader.eof or reader.unused_data:
        problem = f"{len(reader.unused_data)} bytes follow its end" if reader.eof else "it ends too early"
        raise MalformedEncodingError(f"a body must be in {name.decode()} as it says, {problem}; correct it")
    return plain


def encoded(body: bytes, accepted: bytes) -> tuple[bytes, bytes | None]:
    """Compress an answer where its caller's `Accept-Encoding` asks for it: the body, and its encoding if it has one."""
    if len(body) < _LEAST_BYTES:
        return body, None
    for part in accepted.lower().split(b","):
        name, _, quality = part.strip().partition(b";")
        name = name.strip()
        if name in (b"gzip", b"deflate") and not _REFUSED.fullmatch(quality):
            writer = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS[name])
            return writer.compress(body) + writer.flush(), name
    return body, None

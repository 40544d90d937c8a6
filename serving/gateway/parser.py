"""Bytes into requests, for one connection; knows no socket.

llhttp (httptools) decides what HTTP is: it is strict where two readers of the same bytes could disagree, which is what
request smuggling lives on. Added here: what a head and a body may take, and what this server does not speak.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

import httptools

from models.errors import RankyardError, TooLargeError
from serving.gateway.errors import ExpectationError, HeadTooLargeError, MalformedHttpError, quoted
from serving.gateway.messages import Request

_SLICE_BYTES = 16 * 1024
"""How much is parsed before it is looked whether there is room for more requests: small ones come by the thousand."""
_FIELD_BYTES = 32
"""What a header field counts beside its name and value, as in RFC 9113, 6.5.2: many small ones are not free."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the requests of one connection may take.

    max_head_bytes: request line and headers, and trailers with them. n_waiting: whole requests that wait to be asked,
    of which the bodies are at most one body's bytes.
    """

    max_body_bytes: int
    max_head_bytes: int = 32 * 1024
    n_waiting: int = 16


class RequestParser:
    """Requests of one connection, in their order.

    whole: those that can be answered; the reader takes them out. reading: the one whose bytes are coming. has_head:
    only its body is missing. is_done: no request follows, by the client's wish or by a fault.
    """

    __slots__ = (
        "_body",
        "_http",
        "_is_last",
        "_is_upgrading",
        "_limits",
        "_n_head",
        "_n_missing",
        "_n_quiet",
        "_target",
        "has_head",
        "is_done",
        "must_continue",
        "reading",
        "whole",
    )

    def __init__(self, limits: Limits) -> None:
        self.whole: list[Request] = []
        self.reading: Request | None = None
        self.has_head = False
        self.is_done = False
        self.must_continue = False
        """The client waits for `100 Continue` before it sends its body."""
        self._limits = limits
        self._http: Any = httptools.HttpRequestParser(self)
        self._target = b""
        self._body: bytearray | None = None
        self._is_last = False
        self._is_upgrading = False
        self._n_head = 0  # of the head so far, and of trailers
        self._n_missing = 0  # of a body whose length is known
        self._n_quiet = 0  # since llhttp last gave something back: it keeps what is not whole yet

    @property
    def n_body(self) -> int:
        """Bytes of the body that have come."""
        return len(self._body) if self._body is not None else len(self.reading.body) if self.reading else 0

    @property
    def has_room(self) -> bool:
        """Whether more may be read before a request is taken out."""
        whole = self.whole
        if not whole:
            return True
        n_bytes = sum(len(request.body) for request in whole)
        return len(whole) < self._limits.n_waiting and n_bytes < self._limits.max_body_bytes

    def feed(self, data: bytes | memoryview) -> bytes | memoryview:
        """Read on; gives back what there is no room for, to be fed again when requests have been taken."""
        if len(data) <= _SLICE_BYTES:
            self._parse(data)
            return b""
        left = memoryview(data)
        while left and not self.is_done and self.has_room:
            n_bytes = self._slice_bytes(left)
            self._parse(left[:n_bytes])
            left = left[n_bytes:]
        return b"" if self.is_done else left

    def fail(self, fault: RankyardError) -> None:
        """End the request that is being read, or the connection where there is none, with a fault as its answer."""
        request = self.reading or Request(time.monotonic())
        request.fault, request.body = fault, b""
        self.reading, self.has_head, self.must_continue, self._body = None, False, False, None
        self.is_done = True
        self.whole.append(request)

    def close(self) -> None:
        """Let go of llhttp, which holds this object: no garbage is left for the collector."""
        self._http = None

    def _slice_bytes(self, left: memoryview) -> int:
        """Cut so that a body comes in one piece, which is then never copied."""
        if self.has_head:
            return max(self._n_missing, _SLICE_BYTES)
        end = bytes(left[:_SLICE_BYTES]).find(b"\r\n\r\n")
        return _SLICE_BYTES if end < 0 else end + 4

    def _parse(self, data: bytes | memoryview) -> None:
        self._n_quiet += len(data)
        while data:
            try:
                self._http.feed_data(data)
                break
            except httptools.HttpParserUpgrade as pause:
                data = self._without_upgrade() + bytes(data[pause.args[0] :])
            except httptools.HttpParserError as error:
                if not self.is_done:
                    if self.reading is not None and not self.has_head:
                        # How many llhttp has given back by now depends on how the bytes came.
                        self.reading.headers = {}
                    self.fail(MalformedHttpError(f"a request must be HTTP/1.1, it is not ({error}); correct it"))
                break
        if self._n_quiet > self._limits.max_head_bytes and not self.is_done:
            self.fail(self._too_large_head())

    def _without_upgrade(self) -> bytes:
        """The head that was just read, without the wish for another protocol: this server does not take it up.

        llhttp would take what follows for that protocol, even a body: Java's client wishes for h2c with every POST.
        """
        request, self.reading, self.has_head, self._is_upgrading = self.reading, None, False, False
        assert request is not None
        version = self._http.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (request.method.encode(), self._target, version)]
        lines += [b"%b: %b" % field for field in request.headers.items() if field[0] not in (b"upgrade", b"connection")]
        if not self._http.should_keep_alive():
            lines.append(b"connection: close")
            self._http = httptools.HttpRequestParser(self)  # that one is done with the connection
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Begin a request; called by llhttp, like all that follow."""
        if self.is_done:
            raise _StopError
        self.reading = Request(time.monotonic())
        self._target = b""
        self._n_head = 0

    def on_url(self, part: bytes) -> None:
        """Take a part of the request's target."""
        self._target += part
        self._n_head += len(part)
        self._n_quiet = 0
        if self._n_head > self._limits.max_head_bytes:
            self._stop(self._too_large_head())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind the body are counted, and are nobody's."""
        self._n_quiet = 0
        self._n_head += len(name) + len(value) + _FIELD_BYTES
        if self._n_head > self._limits.max_head_bytes:
            self._stop(self._too_large_head())
        if self.has_head:
            return
        assert self.reading is not None
        headers, name, value = self.reading.headers, name.lower(), value.rstrip(b" \t")
        if name in headers:
            if name == b"host":
                self._malformed("a request must have one Host header, got several; send one")
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        """Judge a head."""
        request, http, self._n_quiet = self.reading, self._http, 0
        assert request is not None
        headers = request.headers
        request.method = http.get_method().decode()
        if b"upgrade" in headers and http.should_upgrade() and request.method != "CONNECT":
            self._is_upgrading = True
            return
        request.path = _path(self._target)
        self._is_last = not self._is_kept(request, http.get_http_version())
        self._n_missing = int(headers.get(b"content-length", 0))
        if self._n_missing > self._limits.max_body_bytes:
            self._stop(self._too_large(f"{self._n_missing}"))
        self.has_head = True

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        request, self._n_quiet = self.reading, 0
        assert request is not None
        self._n_missing -= len(part)
        if not request.body:
            request.body = part
        elif self._body is None:
            self._body = bytearray(request.body) + part
        else:
            self._body += part
        if self.n_body > self._limits.max_body_bytes:
            self._stop(self._too_large("more"))

    def on_message_complete(self) -> None:
        """End a request."""
        self._n_quiet = 0
        if self._is_upgrading:
            return
        assert self.reading is not None
        if self._body is not None:
            self.reading.body, self._body = bytes(self._body), None
        self.whole.append(self.reading)
        self.reading, self.has_head, self.must_continue = None, False, False
        self.is_done = self._is_last

    def _is_kept(self, request: Request, version: str) -> bool:
        """Whether the connection stays after this request; stops at what HTTP/1.1 has, but this server does not."""
        headers = request.headers
        coding = headers.get(b"transfer-encoding", b"chunked").lower()
        if version not in ("1.0", "1.1"):
            self._malformed(f"a request must be HTTP/1.1, got HTTP/{version}; send it so")
        if request.method == "CONNECT":
            self._malformed("a request must be for this server, got CONNECT, which proxies take; ask for a path")
        if coding != b"chunked" or (version == "1.0" and b"transfer-encoding" in headers):
            self._malformed(f"a Transfer-Encoding must be chunked, in HTTP/1.1, got {quoted(coding)}; send it so")
        if version == "1.0":
            return False
        if b"host" not in headers:
            self._malformed("a request must have a Host header, got none; send one")
        if b"expect" in headers:
            expected = headers[b"expect"]
            if expected.lower() != b"100-continue":
                self._stop(
                    ExpectationError(f"an Expect header must be 100-continue, got {quoted(expected)}; leave it out")
                )
            self.must_continue = True
        return bool(self._http.should_keep_alive())

    def _malformed(self, message: str) -> NoReturn:
        self._stop(MalformedHttpError(message))

    def _stop(self, fault: RankyardError) -> NoReturn:
        """Fail, and stop llhttp in the middle of what it reads."""
        self.fail(fault)
        raise _StopError

    def _too_large(self, got: str) -> TooLargeError:
        limit = self._limits.max_body_bytes
        return TooLargeError(f"a body must have at most {limit} bytes, got {got}; send less at once")

    def _too_large_head(self) -> HeadTooLargeError:
        limit = self._limits.max_head_bytes
        return HeadTooLargeError(f"a request's head must have at most {limit} bytes, got more; send fewer headers")


class _StopError(Exception):
    """Stops llhttp; it comes out of it as an error of its own."""


def _path(target: bytes) -> str:
    if not target.startswith((b"/", b"*")):  # as it is sent to a proxy: http://HOST/PATH
        target = httptools.parse_url(target).path or b"/"
    path = target.partition(b"?")[0].partition(b"#")[0].decode("latin-1")
    return unquote(path) if "%" in path else path

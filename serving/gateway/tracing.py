"""Traces of the requests that are sampled: what each spent its time on, in W3C context. The others have no span at all.

Spans are plain records while a request runs; `serving.gateway.otlp` turns finished traces into OpenTelemetry's.
Times are seconds on the clock of `time.monotonic()`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Protocol

Attributes = Mapping[str, str | int]

current: ContextVar[Span | None] = ContextVar("span", default=None)
"""The span that what runs now belongs to."""

_MOST_SPANS = 256
"""Of one trace: a request may hold as many queries, each with four spans."""
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 1


class Span:
    """A piece of a sampled request's time."""

    __slots__ = ("attributes", "end_s", "name", "parent_id", "span_id", "start_s", "trace")

    def __init__(self, trace: Trace, name: str, start_s: float, parent_id: int) -> None:
        self.trace = trace
        self.name = name
        self.span_id = random.getrandbits(64) or 1
        self.parent_id = parent_id
        self.start_s = start_s
        self.end_s = start_s
        self.attributes: Attributes = {}

    @property
    def traceparent(self) -> str:
        """What is sent on to a server that works for this span."""
        return f"00-{self.trace.trace_id:032x}-{self.span_id:016x}-01"

    def child(self, name: str, start_s: float) -> Span:
        """Begin a span within this one; beyond the most of a trace it is counted and not kept."""
        trace = self.trace
        span = Span(trace, name, start_s, self.span_id)
        if len(trace.spans) < _MOST_SPANS:
            trace.spans.append(span)
        else:
            trace.n_left_out += 1
        return span

    def record(self, name: str, start_s: float, end_s: float, attributes: Attributes) -> None:
        """Add a span within this one that has ended already."""
        span = self.child(name, start_s)
        span.end_s = end_s
        span.attributes = attributes


class Trace:
    """All spans of one request in this gateway, the first of them the request itself.

    parent_id: the caller's span, 0 without one. state: the caller's `tracestate`, sent on as it came.
    """

    __slots__ = ("n_left_out", "offset_ns", "spans", "state", "trace_id")

    def __init__(self, trace_id: int, parent_id: int, state: str, start_s: float) -> None:
        self.trace_id = trace_id
        self.state = state
        self.offset_ns = time.time_ns() - time.monotonic_ns()
        self.n_left_out = 0
        self.spans = [Span(self, "request", start_s, parent_id)]

    @property
    def request(self) -> Span:
        """The span of the request itself."""
        return self.spans[0]

    def unix_ns(self, seconds: float) -> int:
        """Nanoseconds since 1970 of a moment on the monotonic clock."""
        return self.offset_ns + int(seconds * 1e9)


class Exporter(Protocol):
    """Where finished traces go; it never fails and never waits."""

    def send(self, trace: Trace) -> None:
        """Take a finished trace."""

    def close(self) -> None:
        """Deliver what was taken."""


class Tracer:
    """Decides which requests are traced.

    A caller that sends a `traceparent` has decided already; of the others a share of `ratio` is taken by chance.
    """

    def __init__(self, ratio: float, exporter: Exporter, draw: Callable[[], float] = random.random) -> None:
        self._ratio = ratio
        self._exporter = exporter
        self._draw = draw

    def begin(self, headers: Mapping[bytes, bytes], start_s: float) -> Span | None:
        """Begin a request's trace where it is sampled; headers: its own, by name in lower case."""
        traceparent = headers.get(b"traceparent")
        parent = None if traceparent is None else _parent(traceparent)
        if parent is None:
            if self._draw() >= self._ratio:
                return None
            return Trace(random.getrandbits(128) or 1, 0, "", start_s).request
        trace_id, parent_id, is_sampled = parent
        if not is_sampled:
            return None
        return Trace(trace_id, parent_id, headers.get(b"tracestate", b"").decode("latin-1"), start_s).request

    def end(self, request: Span) -> None:
        """Send a request's trace on its way."""
        self._exporter.send(request.trace)

    def close(self) -> None:
        """Deliver the traces that have ended."""
        self._exporter.close()


def _parent(traceparent: bytes) -> tuple[int, int, bool] | None:
    """Read trace, span and whether it is sampled; None for a header that breaks the rules, which is left unread.

    https://www.w3.org/TR/trace-context/#traceparent-header: version ff is no version, later ones may be longer, and
    neither identity may be zero.
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    trace_id, parent_id = int(found[2], 16), int(found[3], 16)
    return (trace_id, parent_id, bool(int(found[4], 16) & _SAMPLED)) if trace_id and parent_id else None

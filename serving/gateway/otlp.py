"""Sends finished traces to an OpenTelemetry collector, by OTLP over HTTP, from a thread of its own.

Spans are written as the protocol has them, without OpenTelemetry's SDK between, which takes four times as long a span
and would be most of what tracing costs a request whose answer is kept.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from importlib.metadata import version

import httpcore
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Written

from serving.gateway.config import TracingConfig
from serving.gateway.telemetry import Telemetry
from serving.gateway.tracing import Attributes, Span, Trace

_EVERY_S = 1.0
_MOST_WAITING = 2_048
"""Traces; beyond them new ones are dropped, and counted."""
_AT_ONCE = 64
"""Traces in one delivery."""
_TIMEOUT_S = 5.0
_WAITS_S = (0.5, 1.0)
"""Before a delivery is tried again."""
_TRY_AGAIN = (429, 502, 503, 504)
"""https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes"""
_FIRST_FAULT = 500
_FLAGS = 0x01  # sampled

_log = logging.getLogger("rankyard.gateway")


class OtlpExporter:
    """Takes traces on the event loop, which costs an append, and delivers them from its thread every second."""

    def __init__(self, config: TracingConfig, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._endpoint = config.endpoint
        self._headers = [("content-type", "application/x-protobuf"), *config.headers.items()]
        self._connections = httpcore.ConnectionPool(max_connections=1)
        own = version("rankyard")
        named = {"service.name": config.service_name, "service.version": own}
        self._resource = Resource(attributes=_written(named))
        self._scope = InstrumentationScope(name="rankyard.gateway", version=own)
        self._waiting: deque[Trace] = deque()
        self._is_away = False
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def send(self, trace: Trace) -> None:
        """Take a finished trace; where too many wait it is dropped."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(trace)
        else:
            self._telemetry.traces_dropped.inc()

    def close(self) -> None:
        """Deliver what waits, for at most a few seconds."""
        self._is_closing.set()
        self._thread.join(2 * _TIMEOUT_S)
        self._connections.close()

    def _run(self) -> None:
        while not self._is_closing.wait(_EVERY_S):
            self._deliver()
        self._deliver()

    def _deliver(self) -> None:
        while self._waiting:
            traces = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            spans = ScopeSpans(scope=self._scope, spans=[_span(span) for trace in traces for span in trace.spans])
            resource = ResourceSpans(resource=self._resource, scope_spans=[spans])
            fault = self._fault(ExportTraceServiceRequest(resource_spans=[resource]).SerializeToString())
            (self._telemetry.traces_dropped if fault else self._telemetry.traces_sent).inc(len(traces))
            if fault and not self._is_away:
                _log.warning("traces are lost: the collector at %s failed with %s", self._endpoint, fault)
            elif self._is_away and not fault:
                _log.warning("traces go to the collector at %s again", self._endpoint)
            self._is_away = bool(fault)

    def _fault(self, body: bytes) -> str:
        """Deliver `body`; why it could not be, or nothing."""
        for wait_s in (*_WAITS_S, None):
            try:
                timeouts = dict.fromkeys(("connect", "read", "write", "pool"), _TIMEOUT_S)
                response = self._connections.request(
                    "POST", self._endpoint, headers=self._headers, content=body, extensions={"timeout": timeouts}
                )
                fault = "" if response.status // 100 == 2 else f"status {response.status}"
                if response.status not in _TRY_AGAIN:
                    break
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
                fault = repr(error)
            if wait_s is None or self._is_closing.wait(wait_s):
                break
        return fault


def _span(span: Span) -> Written:
    trace = span.trace
    is_request = span is trace.request
    status = None
    attributes = span.attributes
    if is_request:
        if trace.n_left_out:
            attributes = {**attributes, "rankyard.spans_left_out": trace.n_left_out}
        if int(attributes.get("http.response.status_code", 0)) >= _FIRST_FAULT:
            status = Status(code=Status.STATUS_CODE_ERROR)
    return Written(
        trace_id=trace.trace_id.to_bytes(16, "big"),
        span_id=span.span_id.to_bytes(8, "big"),
        parent_span_id=span.parent_id.to_bytes(8, "big") if span.parent_id else b"",
        trace_state=trace.state,
        name=span.name,
        kind=Written.SPAN_KIND_SERVER if is_request else Written.SPAN_KIND_INTERNAL,
        start_time_unix_nano=trace.unix_ns(span.start_s),
        end_time_unix_nano=trace.unix_ns(span.end_s),
        attributes=_written(attributes),
        status=status,
        flags=_FLAGS,
    )


def _written(attributes: Attributes) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value))
        for key, value in attributes.items()
    ]

"""Watches requests from outside: each gets an id, is counted, traced where it is sampled, and logged where wanted."""

from __future__ import annotations

import re
import secrets
import time
from itertools import count

from models.errors import ConfigError
from serving.gateway import logs, tracing
from serving.gateway.config import GatewayConfig, LogsConfig, TracingConfig
from serving.gateway.messages import Request
from serving.gateway.telemetry import Telemetry
from serving.gateway.tracing import Tracer

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_LOGGED_BYTES = 2_000


class Observer:
    """Watches the requests of one gateway; tracer: None where nothing is traced."""

    def __init__(self, config: LogsConfig, telemetry: Telemetry, tracer: Tracer | None = None) -> None:
        self._telemetry = telemetry
        self._tracer = tracer
        self._logs = config
        self._prefix = secrets.token_hex(6).encode()
        self._numbers = count(1)

    def begin(self, request: Request) -> None:
        """Begin to watch a request; its id is the caller's `x-request-id`, where that is one."""
        given = request.headers.get(b"x-request-id")
        if given is None or not _GIVEN_ID.fullmatch(given):
            given = b"%b-%x" % (self._prefix, next(self._numbers))
        request.request_id = given
        logs.request_id.set(given)
        if self._tracer is not None:
            request.span = self._tracer.begin(request.headers, request.begun_s)
            # A connection's requests have one context: the one before may have left its span there.
            if request.span is not tracing.current.get():
                tracing.current.set(request.span)

    def end(self, request: Request, route: str, status: int) -> None:
        """Count, trace and log a request that has its answer."""
        ended_s = time.monotonic()
        seconds = ended_s - request.begun_s
        self._telemetry.answered(route, status, seconds)
        if request.span is not None and self._tracer is not None:
            request.span.name = f"{request.method} {route}"
            request.span.end_s = ended_s
            request.span.attributes = {
                "http.request.method": request.method,
                "http.route": route,
                "http.response.status_code": status,
                "rankyard.request_id": request.request_id.decode(),
            }
            self._tracer.end(request.span)
        if self._logs.requests:
            self._log(request, route, status, seconds)

    def _log(self, request: Request, route: str, status: int, seconds: float) -> None:
        fields: dict[str, object] = {"method": request.method, "route": route, "status": status}
        fields |= {"ms": round(seconds * 1e3, 3), "body_bytes": len(request.body)}
        if self._logs.query_text:
            fields |= {"path": request.path, "body": request.body[:_LOGGED_BYTES].decode("utf-8", "replace")}
        logs.requests.info("answered", extra={"fields": fields})

    def close(self) -> None:
        """Deliver the traces that have ended."""
        if self._tracer is not None:
            self._tracer.close()


def open_tracer(config: TracingConfig | None, telemetry: Telemetry) -> Tracer | None:
    """Make the tracer that is configured, None for none; ConfigError where its packages are not installed."""
    if config is None:
        return None
    try:
        # Imported here: who traces nothing need not have it, nor pay for it at start.
        from serving.gateway.otlp import OtlpExporter
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing needs the package {error.name}, which is not installed; pip install 'rankyard[serve,otel]'",
            field="tracing",
        ) from error
    return Tracer(config.ratio, OtlpExporter(config, telemetry))


def open_observer(config: GatewayConfig, telemetry: Telemetry) -> Observer:
    """Make the observer that is configured; ConfigError as `open_tracer`."""
    return Observer(config.logs, telemetry, open_tracer(config.tracing, telemetry))

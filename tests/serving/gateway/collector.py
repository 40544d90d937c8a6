"""An OpenTelemetry collector that keeps what it gets: OTLP over HTTP on a loopback port."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """Spans by name, in the order they came; resource: attributes of the last sender."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, str] = {}
        self.url = ""
        self._came = threading.Condition()

    def take(self, request: ExportTraceServiceRequest) -> None:
        with self._came:
            for part in request.resource_spans:
                self.resource = {pair.key: pair.value.string_value for pair in part.resource.attributes}
                for scope in part.scope_spans:
                    self.spans += scope.spans
            self._came.notify_all()

    def request(self, request_id: str, timeout_s: float = 60) -> Span:
        """The span of the request with this id, once it is there."""
        with self._came:
            assert self._came.wait_for(lambda: self._requests(request_id), timeout_s), self.names()
            return self._requests(request_id)[0]

    def _requests(self, request_id: str) -> list[Span]:
        return [span for span in self.spans if attributes(span).get("rankyard.request_id") == request_id]

    def within(self, parent: Span) -> list[Span]:
        """Spans that began within another one, by their beginnings."""
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def names(self) -> list[str]:
        return [span.name for span in self.spans]


def attributes(span: Span) -> dict[str, object]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that runs while entered."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            is_right = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            # Before the answer: a gateway that has it may end, and then all that it sent must be here.
            collector.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200 if is_right else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()

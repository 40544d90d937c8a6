"""Traces as a collector gets them from a real gateway."""

import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from models.errors import ConfigError
from registry.deployment import Published, publish
from serving.gateway.config import LogsConfig, TracingConfig
from serving.gateway.messages import Request
from serving.gateway.observer import Observer, open_tracer
from serving.gateway.telemetry import Telemetry
from serving.gateway.tracing import Tracer
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle
from tests.serving.gateway.collector import attributes, collecting
from tests.serving.gateway.conftest import gateway
from tests.serving.gateway.metrics import value

# The example of https://www.w3.org/TR/trace-context/#examples-of-http-traceparent-headers
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANDIDATES = [{"id": "a", "features": {"price": 1.0}}, {"id": "b", "features": {"price": 2.0}}]


@pytest.fixture(scope="module")
def traced(deployment):
    with collecting() as collector:
        config = {"tracing": {"endpoint": collector.url, "ratio": 1, "service_name": "shop-search"}}
        with gateway(deployment, config) as client:
            yield client, collector


def traceparent(version="00", trace=TRACE, parent=PARENT, flags="01"):
    return {"traceparent": f"{version}-{trace}-{parent}-{flags}"}


def test_a_request_is_one_trace_of_what_it_spent_its_time_on(traced):
    client, collector = traced
    answer = client.post("/v1/understand", json={"query": "red nike shoes"})
    request = collector.request(answer.headers["x-request-id"])
    assert (request.name, request.kind, request.parent_span_id) == ("POST /v1/understand", Span.SPAN_KIND_SERVER, b"")
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/understand",
        "http.response.status_code": 200,
        "rankyard.request_id": answer.headers["x-request-id"],
    }
    assert collector.resource["service.name"] == "shop-search"
    parts = collector.within(request)
    assert [span.name for span in parts] == ["tokenize", "queue", "infer", "decode"]
    for span in parts:
        assert span.trace_id == request.trace_id
        assert attributes(span)["rankyard.model"] == "shop-query"
        assert attributes(span)["rankyard.version"] == "3"
    assert attributes(parts[2])["rankyard.batch_size"] == 1
    moments = [moment for span in parts for moment in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert moments == sorted(moments)
    assert request.start_time_unix_nano <= moments[0]
    assert moments[-1] <= request.end_time_unix_nano


def test_an_answer_that_was_kept_is_a_trace_of_the_request_alone(traced):
    client, collector = traced
    client.post("/v1/understand", json={"query": "asked twice"})
    answer = client.post("/v1/understand", json={"query": "asked twice"})
    assert collector.within(collector.request(answer.headers["x-request-id"])) == []


def test_a_phase_of_ranking_holds_what_it_is_made_of(traced):
    client, collector = traced
    answer = client.post("/v1/rank", json={"query": {"text": "shoes"}, "candidates": CANDIDATES})
    (phase,) = collector.within(collector.request(answer.headers["x-request-id"]))
    assert (phase.name, attributes(phase)["rankyard.model"]) == ("phase", "shop-ltr")
    assert [span.name for span in collector.within(phase)] == ["encode", "queue", "infer", "decode"]


def test_a_callers_trace_is_carried_on(traced):
    client, collector = traced
    headers = traceparent() | {"tracestate": "shop=1,other=2"}
    answer = client.post("/v1/understand", json={"query": "red shoes"}, headers=headers)
    request = collector.request(answer.headers["x-request-id"])
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert request.trace_state == "shop=1,other=2"


def test_a_later_version_of_the_header_is_read_as_far_as_it_is_known(traced):
    client, collector = traced
    headers = {"traceparent": f"cc-{TRACE}-{PARENT}-01-what-the-future-brings"}
    answer = client.get("/healthz", headers=headers)
    assert collector.request(answer.headers["x-request-id"]).trace_id.hex() == TRACE


@pytest.mark.parametrize(
    "headers",
    [
        traceparent(version="ff"),
        traceparent(trace="0" * 32),
        traceparent(parent="0" * 16),
        traceparent(trace=TRACE.upper()),
        traceparent(trace=TRACE[1:]),
        traceparent(flags="1"),
        {"traceparent": f"00-{TRACE}-{PARENT}-01-more"},
        {"traceparent": ""},
    ],
)
def test_a_header_that_breaks_the_rules_begins_a_trace_of_its_own(traced, headers):
    client, collector = traced
    answer = client.get("/healthz", headers=headers)
    request = collector.request(answer.headers["x-request-id"])
    assert request.trace_id.hex() != TRACE
    assert request.parent_span_id == b""


def test_a_caller_that_does_not_trace_is_not_traced(traced):
    client, collector = traced
    untraced = client.get("/healthz", headers=traceparent(flags="00")).headers["x-request-id"]
    collector.request(client.get("/healthz").headers["x-request-id"])
    assert untraced not in [attributes(span).get("rankyard.request_id") for span in collector.spans]


def test_a_share_of_the_requests_is_traced_and_those_whose_callers_wish(deployment):
    with collecting() as collector:
        with gateway(deployment, {"tracing": {"endpoint": collector.url, "ratio": 0}}) as client:
            for _ in range(20):
                client.get("/healthz")
            client.get("/healthz", headers=traceparent())
        assert [span.trace_id.hex() for span in collector.spans] == [TRACE]


def test_the_next_request_on_the_connection_of_a_traced_one_is_not_traced(deployment):
    with collecting() as collector:
        config = {"tracing": {"endpoint": collector.url, "ratio": 0}, "cache": {"max_bytes": 0}}
        with gateway(deployment, config) as client:
            client.post("/v1/understand", json={"query": "red shoes"}, headers=traceparent())
            client.post("/v1/understand", json={"query": "red shoes"})
        assert sorted(collector.names()) == ["POST /v1/understand", "decode", "infer", "queue", "tokenize"]


def test_chance_decides_by_the_ratio():
    draws = iter([0.0, 0.0099, 0.01, 0.5, 0.999])
    tracer = Tracer(0.01, exporter=None, draw=lambda: next(draws))
    assert [tracer.begin({}, 0.0) is not None for _ in range(5)] == [True, True, False, False, False]


def test_a_request_with_many_queries_keeps_a_bounded_trace(traced):
    client, collector = traced
    answer = client.post("/v1/understand", json={"queries": [f"shoes {number}" for number in range(200)]})
    request = collector.request(answer.headers["x-request-id"])
    # The request's own span is one of the 256.
    assert len(collector.within(request)) == 255
    assert attributes(request)["rankyard.spans_left_out"] == 4 * 200 - 255


def test_a_failure_of_the_gateway_is_a_span_in_error_and_a_refusal_is_not():
    with collecting() as collector:
        tracer = open_tracer(TracingConfig(endpoint=collector.url, ratio=1), Telemetry())
        observer = Observer(LogsConfig(), Telemetry(), tracer)
        for status in (503, 422):
            request = Request(time.monotonic(), "POST", "/v1/rank", {b"x-request-id": b"s%d" % status})
            observer.begin(request)
            observer.end(request, "/v1/rank", status)
        observer.close()
        assert collector.request("s503").status.code == Status.STATUS_CODE_ERROR
        assert collector.request("s422").status.code == Status.STATUS_CODE_UNSET


def test_what_ends_with_the_gateway_is_still_delivered(deployment):
    with collecting() as collector:
        with gateway(deployment, {"tracing": {"endpoint": collector.url, "ratio": 1}}) as client:
            last = client.get("/healthz").headers["x-request-id"]
        assert collector.request(last, timeout_s=0)


def test_a_collector_that_is_away_costs_traces_and_nothing_else(deployment):
    with socket.socket() as taken:  # which nobody else takes, and nobody listens to
        taken.bind(("127.0.0.1", 0))
        config = {"tracing": {"endpoint": f"http://127.0.0.1:{taken.getsockname()[1]}/v1/traces", "ratio": 1}}
        with gateway(deployment, config, says="traces are lost: the collector at http://127.0.0.1") as client:
            assert client.post("/v1/understand", json={"query": "red shoes"}).status_code == 200
            assert value(client, "rankyard_traces_total", result="sent") == 0


def test_without_its_packages_tracing_is_one_sentence(monkeypatch):
    monkeypatch.delitem(sys.modules, "serving.gateway.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.trace.v1.trace_pb2", None)
    with pytest.raises(ConfigError, match=r"tracing needs the package .*pip install 'rankyard\[serve,otel\]'"):
        open_tracer(TracingConfig(endpoint="http://127.0.0.1:4318/v1/traces"), Telemetry())


@contextmanager
def recording(url: str):
    """A gRPC server that passes every call on to `url` as it is, and the metadata of those to infer."""
    metadata: list[dict[str, str]] = []

    class PassOn(grpc.GenericRpcHandler):
        def service(self, details):
            def call(request, context):
                if details.method.endswith("/ModelInfer"):
                    metadata.append({pair.key: pair.value for pair in context.invocation_metadata()})
                return channel.unary_unary(details.method)(request, timeout=60)

            return grpc.unary_unary_rpc_method_handler(call)

    with ThreadPoolExecutor(4) as threads, grpc.insecure_channel(url) as channel:
        server = grpc.server(threads, handlers=[PassOn()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", metadata
        server.stop(None).wait()


def test_a_triton_server_is_told_the_trace_it_works_for(tmp_path, triton_server):
    served = ServedModel("o-query", "1", tiny_bundle(tmp_path / "bundles", "intent"))
    publish(tmp_path / "d", "o-query", {"champion": Published("1", served.bundle)})
    triton_server.serve([served])
    with collecting() as collector, recording(triton_server.running.grpc) as (url, metadata):
        config = {
            "runtime": {"kind": "triton", "triton_url": url, "fallback": False},
            "cache": {"max_bytes": 0},
            "tracing": {"endpoint": collector.url, "ratio": 0},
        }
        with gateway(tmp_path / "d", config) as client:
            body = {"query": "red shoes"}
            headers = traceparent() | {"tracestate": "shop=1"}
            answer = client.post("/v1/understand", json=body, headers=headers)
            seen = metadata[-1]
            client.post("/v1/understand", json=body)
            assert "traceparent" not in metadata[-1]
        request = collector.request(answer.headers["x-request-id"])
        infer = next(span for span in collector.within(request) if span.name == "infer")
        assert seen["traceparent"] == f"00-{TRACE}-{infer.span_id.hex()}-01"
        assert seen["tracestate"] == "shop=1"


def test_a_batch_of_several_traces_is_a_span_in_each(tmp_path):
    publish(tmp_path / "d", "one", {"champion": Published("1", tiny_bundle(tmp_path / "b", "intent"))})
    with collecting() as collector:
        config = {
            "tracing": {"endpoint": collector.url, "ratio": 1},
            "cache": {"max_bytes": 0},
            "runtime": {"n_workers": 1},
        }
        with gateway(tmp_path / "d", config) as client:
            identities: list[str] = []

            def ask() -> None:
                answers = (client.post("/v1/understand", json={"query": "x"}) for _ in range(20))
                identities.extend(answer.headers["x-request-id"] for answer in answers)

            callers = [threading.Thread(target=ask) for _ in range(8)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        sizes = []
        for identity in identities:
            parts = collector.within(collector.request(identity))
            assert [span.name for span in parts] == ["tokenize", "queue", "infer", "decode"]
            sizes.append(attributes(parts[2])["rankyard.batch_size"])
        # Every batch of n is seen by n traces.
        assert all(sizes.count(size) % size == 0 for size in set(sizes))

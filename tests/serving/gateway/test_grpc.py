"""The gRPC port as part of the process: its start, its end, its limits, and what is seen of it."""

import json
import signal
import socket
import threading
from collections import deque
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as service
from tritonclient.utils import InferenceServerException

from registry.deployment import Published, publish
from tests.bundles import tiny_bundle
from tests.serving.gateway.conftest import gateway, start

ENDED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What gRPC itself tells a caller whose server stops; the second where the call was on its way in."""

ROWS = np.array([[20.0, 1.5], [np.nan, 1.3]], np.float32)


def features(rows=ROWS) -> triton.InferInput:
    tensor = triton.InferInput("features", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return tensor


def request() -> messages.ModelInferRequest:
    found = messages.ModelInferRequest(model_name="shop-ltr", raw_input_contents=[ROWS.tobytes()])
    found.inputs.add(name="features", datatype="FP32", shape=ROWS.shape)
    return found


def test_a_grpc_port_in_use_is_one_sentence(deployment):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(deployment, {"grpc_port": port})
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert f"127.0.0.1:{port} cannot be taken; change grpc_port" in said.splitlines()[-1]


def test_two_gateways_do_not_share_a_grpc_port(deployment):
    with gateway(deployment, {"grpc_port": 0}) as client:
        process = start(deployment, {"grpc_port": int(client.grpc.rpartition(":")[2])})
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 2


def test_no_grpc_is_loaded_where_no_port_is_configured(deployment):
    for config, is_loaded in (({}, False), ({"grpc_port": 0}, True)):
        process = start(deployment, config)
        assert ("grpc://" in process.stdout.readline()) is is_loaded
        assert ("cygrpc" in Path(f"/proc/{process.pid}/maps").read_text()) is is_loaded
        process.terminate()
        process.communicate(timeout=60)


def test_a_signal_finishes_the_calls_that_were_begun(deployment):
    """A stream that is open when the signal comes is a call that was begun: what it still asks is answered."""
    process = start(deployment, {"grpc_port": 0, "drain_s": 60})
    address = process.stdout.readline().partition("grpc://")[2].partition(",")[0]
    may_send, has_ended = threading.Event(), threading.Event()

    def requests():
        yield request()
        may_send.wait(60)
        yield request()
        has_ended.wait(60)

    with grpc.insecure_channel(address) as channel, grpc.insecure_channel(address) as other:
        answers = service.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
        first = next(answers).infer_response
        process.send_signal(signal.SIGTERM)
        ready = service.GRPCInferenceServiceStub(other).ServerReady
        with pytest.raises(grpc.RpcError) as refused:
            deque(iter(lambda: ready(messages.ServerReadyRequest(), timeout=60), None), maxlen=0)
        assert refused.value.code() in ENDED
        may_send.set()
        second = next(answers).infer_response
        assert second.raw_output_contents == first.raw_output_contents
        has_ended.set()
        assert list(answers) == []
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_a_call_that_outlasts_the_drain_is_ended(deployment):
    process = start(deployment, {"grpc_port": 0, "drain_s": 0.5})
    address = process.stdout.readline().partition("grpc://")[2].partition(",")[0]
    for_ever = threading.Event()
    with grpc.insecure_channel(address) as channel:
        answers = service.GRPCInferenceServiceStub(channel).ModelStreamInfer(
            iter(lambda: request() if not for_ever.wait(0.05) else None, None)
        )
        next(answers)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as ended:
            list(answers)
        assert ended.value.code() in ENDED
        for_ever.set()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_clients_own_timeout_is_the_deadline(deployment):
    """gRPC counts milliseconds: what is asked takes several."""
    limits = {"max_candidates": 100_000}
    many = features(np.repeat(ROWS, 50_000, axis=0))
    with (
        gateway(deployment, {"grpc_port": 0, "limits": limits}) as client,
        triton.InferenceServerClient(client.grpc) as stock,
    ):
        assert stock.infer("shop-ltr", [many]).as_numpy("score").shape == (100_000, 1)
        with pytest.raises(InferenceServerException) as late:
            stock.infer("shop-ltr", [many], client_timeout=1e-6)
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert stock.infer("shop-ltr", [features()]).as_numpy("score").shape == (2, 1)


@pytest.mark.parametrize("client_timeout", [None, 20])
def test_a_deadline_in_the_metadata_is_that_of_the_header(deployment, client_timeout):
    def asked(told, rpc):
        return rpc(request(), metadata=[("x-deadline-ms", told)], timeout=client_timeout)

    def streamed(sent, **call):
        return next(stub.ModelStreamInfer(iter([sent]), **call))

    with gateway(deployment, {"grpc_port": 0}) as client, grpc.insecure_channel(client.grpc) as channel:
        stub = service.GRPCInferenceServiceStub(channel)
        assert len(asked("20000", stub.ModelInfer).outputs) == 1
        with pytest.raises(grpc.RpcError) as late:
            asked("0.001", stub.ModelInfer)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "allow more time with x-deadline-ms" in late.value.details()
        with pytest.raises(grpc.RpcError, match="x-deadline-ms must be a number above 0 and up to 30000, got 'soon'"):
            asked("soon", stub.ModelInfer)
        assert "x-deadline-ms" in asked("0.001", streamed).error_message
        assert not asked("20000", streamed).error_message


def test_a_full_queue_is_told_with_when_to_come_back(deployment):
    text = triton.InferInput("text", [200], "BYTES")
    text.set_data_from_numpy(np.array(["red nike shoes"] * 200, object))
    with (
        gateway(deployment, {"grpc_port": 0, "limits": {"max_queue_length": 20}}) as client,
        grpc.insecure_channel(client.grpc) as channel,
    ):
        asked = messages.ModelInferRequest(model_name="shop-query", raw_input_contents=[text._get_content()])
        asked.inputs.add(name="text", datatype="BYTES", shape=[200])
        with pytest.raises(grpc.RpcError) as full:
            service.GRPCInferenceServiceStub(channel).ModelInfer(asked)
        assert full.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(full.value.trailing_metadata())
        assert int(trailing["grpc-retry-pushback-ms"]) >= 0
        assert trailing["x-request-id"]
        assert client.post("/v1/understand", json={"query": "red nike shoes"}).status_code == 200


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_has_the_limit_of_a_body_when_it_is_decompressed(deployment, compression):
    with (
        gateway(deployment, {"grpc_port": 0, "limits": {"max_body_bytes": 20_000}}) as client,
        grpc.insecure_channel(client.grpc) as channel,
    ):
        call = service.GRPCInferenceServiceStub(channel).ModelInfer
        many = messages.ModelInferRequest(model_name="shop-ltr", raw_input_contents=[bytes(8 * 3_000)])
        many.inputs.add(name="features", datatype="FP32", shape=[3_000, 2])
        with pytest.raises(grpc.RpcError, match="larger than max") as refused:
            call(many, compression=compression)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(request(), compression=compression).model_version == "2"


def test_what_is_no_message_is_refused_alone_in_a_call_and_in_a_stream(deployment):
    broken, whole = b"\x0a\xff", request().SerializeToString()
    path = "/inference.GRPCInferenceService"
    with gateway(deployment, {"grpc_port": 0}) as client, grpc.insecure_channel(client.grpc) as channel:
        with pytest.raises(grpc.RpcError, match="ModelInferRequest, got 2 bytes") as refused:
            channel.unary_unary(f"{path}/ModelInfer")(broken)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        stream = channel.stream_stream(
            f"{path}/ModelStreamInfer", response_deserializer=messages.ModelStreamInferResponse.FromString
        )
        first, second, third = stream(iter([whole, broken, whole]))
        assert "got 2 bytes that are none" in second.error_message
        assert [one.infer_response.model_version for one in (first, third)] == ["2", "2"]


def test_a_call_is_counted_named_and_logged_as_a_request_is(deployment):
    config = {"grpc_port": 0, "logs": {"format": "json", "requests": True}}
    path = "/inference.GRPCInferenceService/ModelInfer"
    process = start(deployment, config)
    address = process.stdout.readline().partition("grpc://")[2].partition(",")[0]
    with grpc.insecure_channel(address) as channel:
        call = service.GRPCInferenceServiceStub(channel).ModelInfer
        _, answered = call.with_call(request(), metadata=[("x-request-id", "mine-1")])
        assert dict(answered.trailing_metadata())["x-request-id"] == "mine-1"
        with pytest.raises(grpc.RpcError):
            call(messages.ModelInferRequest(model_name="none"))
        call(request(), metadata=[("x-priority", "bulk")])
        with pytest.raises(grpc.RpcError, match="x-priority must be interactive or bulk, got 'low'"):
            call(request(), metadata=[("x-priority", "low")])
    process.terminate()
    _, said = process.communicate(timeout=60)
    lines = [line for line in map(json.loads, said.splitlines()) if line.get("route") == path]
    assert [(line["status"], line["method"]) for line in lines] == [(status, "POST") for status in (200, 404, 200, 422)]
    assert lines[0]["request_id"] == "mine-1"
    assert lines[0]["body_bytes"] == request().ByteSize()


def test_promotions_under_a_stream_mix_no_versions_and_fail_no_call(tmp_path):
    """Version N answers N times the popularity: score and version must belong to each other."""
    bundles = {
        version: tiny_bundle(tmp_path / "bundles", "ranking", weights=[0.0, float(version)]) for version in range(1, 6)
    }
    directory = tmp_path / "deployment"
    publish(directory, "shop-ltr", {"champion": Published("1", bundles[1])})
    seen: dict[int, float] = {}
    is_done = threading.Event()
    with (
        gateway(directory, {"grpc_port": 0, "follow_s": 0.02}, says="serving shop-ltr/5") as client,
        grpc.insecure_channel(client.grpc) as channel,
    ):
        answers = service.GRPCInferenceServiceStub(channel).ModelStreamInfer(
            iter(lambda: None if is_done.is_set() else request(), None)
        )
        for answer in answers:
            assert not answer.error_message
            version = int(answer.infer_response.model_version)
            score = float(np.frombuffer(answer.infer_response.raw_output_contents[0], "<f4")[0])
            assert score == pytest.approx(version * 1.5)
            if version not in seen and version < 5:
                publish(directory, "shop-ltr", {"champion": Published(str(version + 1), bundles[version + 1])})
            seen[version] = score
            if version == 5:
                is_done.set()
    assert sorted(seen) == [1, 2, 3, 4, 5]

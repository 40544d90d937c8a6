"""Triton's schedule policy: `priority` and `timeout` of a request are the gateway's own priority and deadline."""

import asyncio
import json
import time

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.grpc import service_pb2 as messages
from tritonclient.utils import InferenceServerException

from models.errors import InputError
from serving.gateway.app import App
from serving.gateway.batcher import Batcher, priority
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, only
from serving.gateway.messages import Answer, Request
from serving.gateway.observer import Observer
from serving.gateway.open_inference import protobuf
from serving.gateway.telemetry import Telemetry
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle
from tests.serving.gateway.conftest import gateway


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ServedModel:
    return ServedModel("q", "1", tiny_bundle(tmp_path_factory.mktemp("q"), "intent"))


def infer(served: ServedModel, parameters: dict, headers: dict[bytes, bytes], *, ago_s: float = 0.0) -> Answer:
    """Ask a gateway, that answers in at most a second where it is told nothing, for what was asked `ago_s` before."""
    config = GatewayConfig(max_deadline_ms=60_000)
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["red shoes"]}
    body = json.dumps({"inputs": [text], "parameters": parameters}).encode()

    async def ask() -> Answer:
        telemetry = Telemetry()
        app = App(config, telemetry, Observer(config.logs, telemetry))
        app.dataplane = await Dataplane.open(config, only(served), OnnxRuntime(1))
        request = Request(time.monotonic() - ago_s, "POST", "/v2/models/q/infer", headers=headers, body=body)
        try:
            return await asyncio.create_task(app.answer(request))
        finally:
            await app.dataplane.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("sent", "header", "queued"),
    [
        (None, None, "interactive"),
        (0, b"bulk", "bulk"),
        (1, b"bulk", "interactive"),
        (2, None, "bulk"),
        (7, b"interactive", "bulk"),
    ],
)
def test_priority_1_is_interactive_and_every_lower_one_bulk(served, monkeypatch, sent, header, queued):
    found, submit = [], Batcher.submit

    def watched(*arguments, **named):
        found.append(priority.get())
        return submit(*arguments, **named)

    monkeypatch.setattr(Batcher, "submit", watched)
    parameters = {"timeout": 50_000_000} if sent is None else {"timeout": 50_000_000, "priority": sent}
    assert infer(served, parameters, {} if header is None else {b"x-priority": header}).status == 200
    assert found == [queued]


@pytest.mark.parametrize(
    ("timeout", "header", "ago_s", "status"),
    [
        (None, None, 2.0, 504),
        (0, None, 2.0, 504),
        (50_000_000, None, 2.0, 200),
        (50_000_000, b"1000", 2.0, 504),
        (1_000_000, b"50000", 2.0, 504),
        (10**400, None, 2.0, 200),
        (10**400, None, 61.0, 504),
    ],
)
def test_a_timeout_stands_in_for_the_configured_deadline_within_its_bound(served, timeout, header, ago_s, status):
    headers = {} if header is None else {b"x-deadline-ms": header}
    assert infer(served, {"timeout": timeout}, headers, ago_s=ago_s).status == status


@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_what_is_below_0_is_refused(served, name):
    answer = infer(served, {name: -1}, {})
    assert answer.status == 400
    assert json.loads(answer.body) == {
        "error": f"parameters.{name} must be 0 or more, got -1; correct it or leave it out"
    }


def test_a_grpc_request_says_the_same():
    asked = messages.ModelInferRequest()
    assert protobuf.schedule(asked) == protobuf.Schedule(0, 0)
    asked.parameters["priority"].uint64_param = 2
    asked.parameters["timeout"].int64_param = 5
    assert protobuf.schedule(asked) == protobuf.Schedule(2, 5)
    asked.parameters["timeout"].string_param = "5"
    with pytest.raises(InputError, match="timeout must be an int64_param or uint64_param, got a string_param"):
        protobuf.schedule(asked)


def test_stock_clients_timeout_is_the_deadline_over_grpc(deployment):
    text = grpc.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array(["red"], object))
    with (
        gateway(deployment, {"deadline_ms": 1e-6, "grpc_port": 0}) as client,
        grpc.InferenceServerClient(client.grpc) as stock,
    ):
        assert stock.infer("shop-query", [text], timeout=30_000_000, priority=2).as_numpy("intent_logits") is not None
        with pytest.raises(InferenceServerException, match="deadline") as late:
            stock.infer("shop-query", [text])
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert "schedule_policy" in stock.get_server_metadata().extensions
        batching = stock.get_model_config("shop-query").config.dynamic_batching
        assert (batching.priority_levels, batching.default_priority_level) == (2, 1)

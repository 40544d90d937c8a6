"""Rankers by the Open Inference Protocol, asked by a stock client too."""

import json

import numpy as np
import pytest
import tritonclient.http as triton

from serving.gateway import inference
from tests.serving.gateway.forms import LIMITS, refused


def test_json_tensors_are_answered_as_json(tree_client, booster):
    body = {
        "id": "7",
        "inputs": [{"name": "features", "shape": [1, 5], "datatype": "FP32", "data": [[1, 2, None, 4, 5]]}],
    }
    answer = tree_client.post("/v2/models/trees/infer", json=body).json()
    score = float(booster.inplace_predict(np.array([[1, 2, np.nan, 4, 5]], np.float32))[0])
    assert answer == {
        "model_name": "trees",
        "model_version": "4",
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [1, 1], "data": [pytest.approx(score, abs=1e-6)]}],
        "id": "7",
    }


def test_a_model_says_what_it_reads(tree_client):
    assert tree_client.get("/v2/models/trees").json() == {
        "name": "trees",
        "versions": ["4"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 5]}],
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, 1]}],
    }
    with triton.InferenceServerClient(f"{tree_client.base_url.host}:{tree_client.base_url.port}") as other:
        assert other.is_model_ready("trees")
        assert other.is_model_ready("trees", "4")
        assert not other.is_model_ready("trees", "3")
        assert other.get_model_metadata("trees")["versions"] == ["4"]


def test_tritons_client_gets_refusals_as_its_own_errors(tree_client):
    tensor = triton.InferInput("features", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
    with triton.InferenceServerClient(f"{tree_client.base_url.host}:{tree_client.base_url.port}") as other:
        with pytest.raises(triton.InferenceServerException, match=r"\[candidates, 5\] for trees/4, got \[1, 2\]"):
            other.infer("trees", [tensor])
        with pytest.raises(triton.InferenceServerException, match="one of the rankers served"):
            other.infer("teers", [tensor])


def test_routes_of_models_are_counted_under_one_name(tree_client):
    tree_client.get("/v2/models/made-up")
    text = tree_client.get("/metrics").text
    assert 'route="/v2/models/NAME"' in text
    assert "made-up" not in text


def tensors(*inputs, **rest) -> bytes:
    return json.dumps({"inputs": list(inputs), **rest}).encode()


def fp32(name="features", shape=(1, 5), **rest) -> dict:
    return {"name": name, "shape": list(shape), "datatype": "FP32", **rest}


FIVE = [1.0, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("body", "length", "field", "says"),
    [
        (b"{", None, None, "must be JSON"),
        (tensors(), None, "inputs", "got none"),
        (tensors(fp32(data=FIVE)), 9_999, None, "Inference-Header-Content-Length must be from 0"),
        (tensors(fp32()), None, "inputs[0].data", "must have data, or binary_data_size"),
        (tensors(fp32(data=FIVE[:4])), None, "inputs[0].data", "5 values for the shape [1, 5], got 4"),
        (tensors(fp32(data=[*FIVE[:4], "x"])), None, "inputs[0].data", "must be numbers or null, got 'x'"),
        (
            tensors(fp32(data=[*FIVE[:4], 1e39])),
            None,
            "features",
            "must fit into float32 (up to 3.4e38), value 4 is 1e+39",
        ),
        (tensors(fp32(shape=(-1, 5), data=FIVE)), None, "inputs[0].shape", "sizes of 0 or more"),
        (tensors(fp32(shape=(5,), data=FIVE)), None, "features", "[candidates, 5] for trees/4, got [5]"),
        (tensors({**fp32(data=FIVE), "datatype": "BYTES"}), None, "inputs[0].datatype", "got 'BYTES'"),
        (tensors(fp32(data=FIVE), fp32(data=FIVE)), None, "inputs[1].name", "must be sent once"),
        (tensors(fp32(data=FIVE), fp32("price", [1], data=[1])), None, "inputs", "must be sent alone"),
        (
            tensors(fp32("price", [2], data=[1, 2]), fp32("stock", [1], data=[1])),
            None,
            "inputs",
            "price [2], stock [1]",
        ),
        (tensors(fp32("price", [1, 2], data=[1, 2])), None, "inputs", "price [1, 2]"),
        (tensors(fp32("colour", [1], data=[1])), None, "features.colour", "must be one of the model's"),
        (tensors(fp32(shape=(10_001, 1), data=[0] * 10_001)), None, "features", "[candidates, 5]"),
        (tensors(fp32("price", [10_001], data=[0] * 10_001)), None, "candidates", "at most 10000 candidates"),
        (tensors(fp32(data=FIVE), outputs=[{"name": "rank"}]), None, "outputs[0].name", "got 'rank'"),
    ],
)
def test_wrong_tensors_are_refused_with_their_rule_and_value(tree_served, tree_model, body, length, field, says):
    found = refused(lambda: inference.read(body, length, tree_served, tree_model, LIMITS))
    assert found[1] == field
    assert says in found[2]


@pytest.mark.parametrize(
    ("raw", "size", "says"),
    [
        (b"\0" * 19, 20, "got binary_data_size 20 and 19 bytes"),
        (b"\0" * 20, 16, "20 bytes"),
        (b"\0" * 21, 20, "1 bytes follow"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(tree_served, tree_model, raw, size, says):
    header = tensors(fp32(parameters={"binary_data_size": size}))
    assert says in refused(lambda: inference.read(header + raw, len(header), tree_served, tree_model, LIMITS))[2]


def test_infinity_is_refused_in_bytes_as_in_json(tree_served, tree_model):
    header = tensors(fp32(parameters={"binary_data_size": 20}))
    raw = np.array([1, 2, -np.inf, 4, 5], "<f4").tobytes()
    says = refused(lambda: inference.read(header + raw, len(header), tree_served, tree_model, LIMITS))[2]
    assert "features must fit into float32 (up to 3.4e38), value 2 is -inf" in says

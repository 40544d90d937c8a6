"""The Open Inference Protocol over HTTP: what is read, what is refused and how."""

import json

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from models.model import open_model
from serving.gateway.open_inference.tensors import from_raw
from serving.runtime.protocol import ServedModel
from tests.serving.gateway.bundles import joint_bundle, list_bundle
from tests.serving.gateway.forms import read_tensors, refused


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
        with pytest.raises(triton.InferenceServerException, match=r"\[-1, 5\] \(-1: any\) for trees/4, got \[1, 2\]"):
            other.infer("trees", [tensor])
        with pytest.raises(triton.InferenceServerException, match="one of those served"):
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
        (tensors(fp32()), None, "inputs[0].data", "data or binary_data_size, got neither"),
        (tensors(fp32(data=FIVE, parameters={"binary_data_size": 20})), None, "inputs[0].data", "got both; send one"),
        (
            tensors(fp32(shape=(0, 2**40), data=[])),
            None,
            "inputs[0].shape",
            "2147483648 values, got [0, 1099511627776]",
        ),
        (tensors(fp32(shape=(0, 10**30), data=[])), None, "inputs[0].shape", "at most 8 axes and 2147483648 values"),
        (tensors(fp32(shape=[1] * 65, data=[1])), None, "inputs[0].shape", "at most 8 axes"),
        (tensors(fp32(data=[[FIVE]])), None, "inputs[0].data", "must have 5 values for the shape [1, 5], got 1"),
        (tensors(fp32("price", [1], data=[[1]])), None, "inputs[0].data", "must be numbers or null, got [1]"),
        (tensors(fp32(data=FIVE[:4])), None, "inputs[0].data", "5 values for the shape [1, 5], got 4"),
        (tensors(fp32(data=[*FIVE[:4], "x"])), None, "inputs[0].data", 'must be numbers or null, got "x"'),
        (
            tensors(fp32(data=[*FIVE[:4], 1e39])),
            None,
            "features",
            "must fit into float32 (up to 3.4e38), value 4 is 1e+39",
        ),
        (tensors(fp32(shape=(-1, 5), data=FIVE)), None, "inputs[0].shape", "sizes of 0 or more"),
        (tensors(fp32(shape=(5,), data=FIVE)), None, "features", "[-1, 5] (-1: any) for trees/4, got [5]"),
        (tensors({**fp32(data=FIVE), "datatype": "BYTES"}), None, "inputs[0].data", "must be texts in UTF-8, got 1.0"),
        (tensors(fp32(data=FIVE), fp32(data=FIVE)), None, "inputs[1].name", "must be sent once"),
        (tensors({**fp32(data=["1"] * 5), "datatype": "BYTES"}), None, "features", "must be of the datatype FP32"),
        (tensors({**fp32(data=FIVE), "datatype": "BF16"}), None, "inputs[0].datatype", "got 'BF16'"),
        (tensors({**fp32(data=[1.5] * 5), "datatype": "INT64"}), None, "inputs[0].data", "integers, got 1.5"),
        (tensors({**fp32(data=[300] * 5), "datatype": "UINT8"}), None, "inputs[0].data", "must fit into UINT8"),
        (tensors(fp32(data=FIVE), fp32("price", [1], data=[1])), None, "price", "is none of them; leave it out"),
        (
            tensors(fp32("price", [2], data=[1, 2]), fp32("stock", [1], data=[1])),
            None,
            "inputs",
            "price [2], stock [1]",
        ),
        (tensors(fp32("price", [1, 2], data=[1, 2])), None, "price", "[N] or [N, 1], got [1, 2]"),
        (tensors(fp32("colour", [1], data=[1])), None, "features.colour", "must be one of the model's"),
        (tensors(fp32(shape=(10_001, 1), data=[0] * 10_001)), None, "features", "[-1, 5]"),
        (tensors(fp32("price", [10_001], data=[0] * 10_001)), None, "candidates", "at most 10000 candidates"),
        (
            tensors(fp32(data=FIVE), outputs=[{"name": "score", "parameters": {"classification": -1}}]),
            None,
            "outputs[0].parameters.classification",
            "must be >= 0, got -1",
        ),
        (
            tensors(fp32(data=FIVE, parameters={"shared_memory_region": "mine"})),
            None,
            "inputs[0]",
            "shares no memory, got shared_memory_region 'mine'",
        ),
    ],
)
def test_wrong_tensors_are_refused_with_their_rule_and_value(tree_served, tree_model, body, length, field, says):
    found = refused(lambda: read_tensors(body, length, tree_served, tree_model))
    assert found[1] == field
    assert says in found[2]


@pytest.mark.parametrize(
    ("raw", "size", "says"),
    [
        (b"\0" * 19, 20, "got binary_data_size 20 and 19 bytes"),
        (b"\0" * 20, -1, "got binary_data_size -1"),
        (b"\0" * 20, 16, "must have 20 bytes for [1, 5] of FP32, got 16"),
        (b"\0" * 21, 20, "1 bytes follow"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(tree_served, tree_model, raw, size, says):
    header = tensors(fp32(parameters={"binary_data_size": size}))
    assert says in refused(lambda: read_tensors(header + raw, len(header), tree_served, tree_model))[2]


def test_infinity_is_refused_in_bytes_as_in_json(tree_served, tree_model):
    header = tensors(fp32(parameters={"binary_data_size": 20}))
    raw = np.array([1, 2, -np.inf, 4, 5], "<f4").tobytes()
    says = refused(lambda: read_tensors(header + raw, len(header), tree_served, tree_model))[2]
    assert "features must fit into float32 (up to 3.4e38), value 2 is -inf" in says


def int64(name, rows, **rest) -> dict:
    flat = [value for row in rows for value in row]
    return {"name": name, "shape": [len(rows), len(rows[0])], "datatype": "INT64", "data": flat, **rest}


def text(values, name="text", shape=None) -> dict:
    return {"name": name, "shape": [len(values)] if shape is None else shape, "datatype": "BYTES", "data": values}


ONES = int64("attention_mask", [[1, 1, 1]])


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> ServedModel:
    return ServedModel("joint", "1", joint_bundle(tmp_path_factory.mktemp("joint"), max_windows=2))


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        (tensors(int64("input_ids", [[1, 3, 2]])), "attention_mask", "'attention_mask' is missing; add it"),
        (tensors(int64("input_ids", [[1, 9, 2]]), ONES), "input_ids", "from 0 to 8 for joint/1, got 9"),
        (tensors(int64("input_ids", [[1, -1, 2]]), ONES), "input_ids", "from 0 to 8 for joint/1, got -1"),
        (tensors(int64("input_ids", [[1, 2]]), ONES), "inputs", "input_ids [1, 2], attention_mask [1, 3]; pad them"),
        (tensors(int64("input_ids", [[1] * 17]), int64("attention_mask", [[1] * 17])), "inputs", "a length of 1 to 16"),
        (tensors(int64("input_ids", [[]]), int64("attention_mask", [[]])), "inputs", "a length of 1 to 16"),
        (tensors({**int64("input_ids", [[1, 3, 2]]), "datatype": "FP32"}, ONES), "input_ids", "datatype INT64"),
        (
            tensors(int64("input_ids", [[1, 3, 2]]), {**ONES, "datatype": "UINT64", "data": [1, 2**63, 1]}),
            "attention_mask",
            "got 9223372036854775808",
        ),
        *(
            (
                tensors(int64("input_ids", [[1, 3, 2]]), int64("attention_mask", [mask])),
                "attention_mask",
                "on the right",
            )
            for mask in ([0, 0, 0], [0, 1, 1], [1, 0, 1], [2, 1, 1], [1, 1, -1])
        ),
        (tensors(int64("input_ids", [[1]] * 257), int64("attention_mask", [[1]] * 257)), "inputs", "256 rows, got 257"),
        (tensors(text(["red"] * 257)), "inputs", "256 rows, got 257"),
        (tensors(text(["red", "x" * 1001])), "text[1]", "at most 1000 characters, got 1001"),
        (tensors(text(["red " * 40])), "text[0]", "at most 16 tokens in each of 2 windows"),
        (tensors(text(["red " * 20])), "text[0]", "must fit into one window"),
        (tensors(text(["red"], shape=[1, 1, 1])), "text", "[N] or [N, 1], got [1, 1, 1]"),
        (tensors(text(["red"]), int64("input_ids", [[1, 3, 2]])), "attention_mask", "is missing"),
        (tensors({**text([1.0]), "datatype": "FP32"}), "text", "must be texts (BYTES)"),
        (tensors(text(["red"], name="query")), "inputs", "or text alone, for joint/1, got query [1]"),
    ],
)
def test_a_text_model_refuses_what_its_network_cannot_read(joint, body, field, says):
    model = open_model(joint.bundle.path, joint.bundle.manifest)
    found = refused(lambda: read_tensors(body, None, joint, model))
    assert found[1] == field
    assert says in found[2]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"\3\0\0\0red\5\0\0\0shoe", "15 bytes end within one"),
        (b"\3\0\0\0red\5\0", "9 bytes end within one"),
        (b"\3\0\0\0red", "2 texts for [2], got 1"),
        (b"\3\0\0\0red\1\0\0\0\xff", "texts in UTF-8, got b'\\xff'"),
    ],
)
def test_texts_that_are_cut_or_not_utf8_are_refused(joint, raw, says):
    model = open_model(joint.bundle.path, joint.bundle.manifest)
    header = tensors({**text([], shape=[2]), "parameters": {"binary_data_size": len(raw)}, "data": None})
    assert says in refused(lambda: read_tensors(header + raw, len(header), joint, model))[2]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6))
def test_texts_are_read_from_what_tritons_client_writes(texts):
    array = np.array(texts, dtype=object).reshape(len(texts), 1)
    raw = serialize_byte_tensor(array).item() if texts else b""
    assert from_raw(memoryview(raw), "BYTES", [len(texts), 1], "x").ravel().tolist() == texts


def test_what_is_not_of_the_protocol_is_told_so_by_tritons_codes(tree_client):
    for path, status in (
        ("/v2/repository/models/trees/load", 501),
        ("/v2/repository/models/trees/unload", 501),
        ("/v2/models/trees/generate", 404),
        ("/v2/systemsharedmemory/status", 404),
        ("/v2/models/trees", 405),
    ):
        answer = tree_client.post(path, json={})
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert tree_client.get("/v2/models/trees/infer").headers["allow"] == "POST"
    broken = tree_client.post("/v2/models/trees/infer", json={"inputs": []})
    assert (broken.status_code, list(broken.json())) == (400, ["error"])


@pytest.mark.parametrize(
    ("shape", "field", "says"),
    [
        ((1, 2_001, 1), "candidates", "at most 2000 candidates, got 2001"),
        ((1, 0, 1), "inputs", "at least 1 for list/1"),
    ],
)
def test_a_network_that_reads_whole_lists_reads_none_that_is_too_long_or_empty(tmp_path, shape, field, says):
    served = ServedModel("list", "1", list_bundle(tmp_path))
    model = open_model(served.bundle.path, served.bundle.manifest)
    body = tensors(fp32(shape=shape, data=[0.0] * shape[1]))
    found = refused(lambda: read_tensors(body, None, served, model))
    assert found[1] == field
    assert says in found[2]

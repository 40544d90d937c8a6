"""One request in every form: by row, by column, by Arrow, by the Open Inference Protocol."""

import asyncio
import contextlib
import json
import sys

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError, RankyardError
from registry.deployment import Published, publish
from serving.gateway import arrow, inference
from serving.gateway.candidates import Reader
from serving.gateway.config import GatewayConfig, LimitsConfig
from serving.gateway.dataplane import Dataplane, only
from serving.gateway.predict import predict
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel
from tests.serving.gateway.conftest import gateway
from tests.tree_bundle import NAMES, grow, tree_bundle

ARROW = "application/vnd.apache.arrow.stream"
LIMITS = LimitsConfig()


@pytest.fixture(scope="module")
def booster():
    return grow(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory, booster) -> ServedModel:
    return ServedModel("trees", "4", tree_bundle(tmp_path_factory.mktemp("trees"), booster))


@pytest.fixture(scope="module")
def client(tmp_path_factory, served):
    directory = tmp_path_factory.mktemp("deployment")
    publish(directory, "trees", {"champion": Published("4", served.bundle)})
    with gateway(directory, {"limits": {"max_candidates": 50}}) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(served):
    async def run():
        dataplane = await Dataplane.open(GatewayConfig(), only(served), OnnxRuntime(1, scorers=("onnx",)))
        _, model = dataplane.ranker("trees", None)
        await dataplane.close()
        return model

    return asyncio.run(run())


numbers = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**24), 2**24)


@st.composite
def tables(draw) -> dict[str, list]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    n = draw(st.integers(1, 6))
    return {
        "ids": [f"p{i}" for i in range(n)],
        **{name: draw(st.lists(numbers, min_size=n, max_size=n)) for name in names},
    }


def by_row(table: dict, **rest) -> bytes:
    names = [name for name in table if name != "ids"]
    candidates = [
        {"id": identity, "features": {name: table[name][i] for name in names}}
        for i, identity in enumerate(table["ids"])
    ]
    return json.dumps({"candidates": candidates, **rest}).encode()


def by_column(table: dict, **rest) -> bytes:
    columns = {name: values for name, values in table.items() if name != "ids"}
    return json.dumps({"candidates": {"ids": table["ids"], "features": columns}, **rest}).encode()


def by_arrow(table: dict, options: dict | None = None, types: dict | None = None, **rest) -> bytes:
    columns = {
        "id" if name == "ids" else name: pa.array(
            values if name == "ids" else [None if v is None else float(v) for v in values],
            (types or {}).get(name, pa.string() if name == "ids" else pa.float64()),
        )
        for name, values in table.items()
    }
    found = pa.table({**columns, **rest})
    if options is not None:
        found = found.replace_schema_metadata({arrow.OPTIONS: json.dumps(options)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as stream:
        stream.write_table(found, max_chunksize=2 if len(found) < 100 else None)
    return sink.getvalue().to_pybytes()


def as_tensors(table: dict, *, is_binary: bool, dtype: str = "FP32") -> tuple[bytes, int | None]:
    """One tensor a feature."""
    inputs, raw = [], b""
    for name, values in table.items():
        if name == "ids":
            continue
        column = np.array(values, dtype=np.float64).astype({"FP32": "<f4", "FP64": "<f8"}[dtype])
        tensor = {"name": name, "shape": [len(column)], "datatype": dtype}
        if is_binary:
            tensor["parameters"] = {"binary_data_size": column.nbytes}
            raw += column.tobytes()
        else:
            tensor["data"] = [None if np.isnan(value) else float(value) for value in column]
        inputs.append(tensor)
    header = json.dumps({"inputs": inputs}).encode()
    return header + raw, len(header) if is_binary else None


def matrix_of(model, asked) -> bytes:
    return np.asarray(model.encode(asked.request).arrays["features"], np.float32).tobytes()


@settings(max_examples=150, deadline=None)
@given(table=tables())
def test_every_form_of_a_request_gives_the_model_the_same_bytes(model, served, table):
    reader = Reader(LIMITS, model.sent)
    general = Reader(LIMITS, ["a name that no struct \\ can have"])
    expected = matrix_of(model, reader.read(by_row(table)))
    assert matrix_of(model, general.read(by_row(table))) == expected
    assert matrix_of(model, reader.read(by_column(table))) == expected
    assert matrix_of(model, reader.read(by_arrow(table), is_arrow=True)) == expected
    if len(table) > 1:
        for is_binary, dtype in ((True, "FP32"), (True, "FP64"), (False, "FP64")):
            body, length = as_tensors(table, is_binary=is_binary, dtype=dtype)
            read = inference.read(body, length, served, model, LIMITS)
            assert np.asarray(read.encoded.arrays["features"]).tobytes() == expected


@settings(max_examples=25, deadline=None)
@given(table=tables())
def test_every_form_gets_the_same_scores_over_http_which_are_xgboosts(client, booster, table):
    matrix = np.full((len(table["ids"]), len(NAMES)), np.nan, np.float32)
    for place, name in enumerate(NAMES):
        if name in table:
            matrix[:, place] = np.array(table[name], dtype=np.float32)
    expected = dict(zip(table["ids"], booster.inplace_predict(matrix).astype(np.float64).tolist(), strict=True))
    for body, kind in ((by_row(table), None), (by_column(table), None), (by_arrow(table), ARROW)):
        answer = client.post("/v1/rank", content=body, headers={"content-type": kind} if kind else {})
        assert answer.status_code == 200, answer.text
        assert {item["id"]: item["score"] for item in answer.json()["ranking"]} == expected
    tensor = triton.InferInput("features", list(matrix.shape), "FP32")
    tensor.set_data_from_numpy(matrix)
    with triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as other:
        for version in ("", "4"):
            scores = other.infer("trees", [tensor], version).as_numpy("score")
            assert scores.shape == (len(matrix), 1)
            assert scores.ravel().astype(np.float64).tolist() == list(expected.values())


def test_json_tensors_are_answered_as_json(client, booster):
    body = {
        "id": "7",
        "inputs": [{"name": "features", "shape": [1, 5], "datatype": "FP32", "data": [[1, 2, None, 4, 5]]}],
    }
    answer = client.post("/v2/models/trees/infer", json=body).json()
    score = float(booster.inplace_predict(np.array([[1, 2, np.nan, 4, 5]], np.float32))[0])
    assert answer == {
        "model_name": "trees",
        "model_version": "4",
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [1, 1], "data": [pytest.approx(score, abs=1e-6)]}],
        "id": "7",
    }


def test_a_model_says_what_it_reads(client):
    assert client.get("/v2/models/trees").json() == {
        "name": "trees",
        "versions": ["4"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 5]}],
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, 1]}],
    }
    with triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as other:
        assert other.is_model_ready("trees")
        assert other.is_model_ready("trees", "4")
        assert not other.is_model_ready("trees", "3")
        assert other.get_model_metadata("trees")["versions"] == ["4"]


def test_tritons_client_gets_refusals_as_its_own_errors(client):
    tensor = triton.InferInput("features", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
    with triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as other:
        with pytest.raises(triton.InferenceServerException, match=r"\[candidates, 5\] for trees/4, got \[1, 2\]"):
            other.infer("trees", [tensor])
        with pytest.raises(triton.InferenceServerException, match="one of the rankers served"):
            other.infer("teers", [tensor])


def test_routes_of_models_are_counted_under_one_name(client):
    client.get("/v2/models/made-up")
    text = client.get("/metrics").text
    assert 'route="/v2/models/NAME"' in text
    assert "made-up" not in text


@settings(max_examples=60, deadline=None)
@given(
    query=st.dictionaries(st.sampled_from(NAMES), numbers, max_size=3),
    table=tables(),
    dropped=st.sets(st.tuples(st.integers(0, 5), st.sampled_from(NAMES))),
)
def test_a_querys_value_holds_where_no_candidate_has_the_feature_in_both_ways_of_reading(model, query, table, dropped):
    body = json.loads(by_row(table, query={"features": query}))
    for row, name in dropped:
        if row < len(body["candidates"]):
            body["candidates"][row]["features"].pop(name, None)
    sent = json.dumps(body).encode()
    quick, general = Reader(LIMITS, model.sent), Reader(LIMITS, ["no \\ struct"])
    assert matrix_of(model, quick.read(sent)) == matrix_of(model, general.read(sent))


def test_options_of_an_arrow_stream_stand_in_its_metadata(client):
    table = {"ids": ["a", "b", "c"], "price": [1, 2, 3]}
    options = {"query": {"features": {"stock": 2}}, "top_k": 2}
    answers = [
        client.post("/v1/rank", content=by_row(table, **options)),
        client.post("/v1/rank", content=by_arrow(table, options), headers={"content-type": f"{ARROW}; charset=x"}),
    ]
    by_rows, by_stream = (answer.json()["ranking"] for answer in answers)
    assert by_rows == by_stream
    assert len(by_stream) == 2


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.int8(), pa.uint64(), pa.int64()], ids=str)
def test_arrow_columns_of_any_number_are_read(model, kind):
    column = (
        pa.array([3, None, 5], pa.float64()).cast(kind)
        if kind != pa.float16()
        else pa.array([np.float16(3), None, np.float16(5)], kind)
    )
    asked = Reader(LIMITS, model.sent).read(by_arrow({"ids": ["a", "b", "c"]}, price=column), is_arrow=True)
    assert np.array_equal(asked.request.features["price"], np.array([3, np.nan, 5], np.float32), equal_nan=True)


def refused(read) -> tuple[str, str | None, str]:
    with pytest.raises(RankyardError) as caught:
        read()
    return caught.value.code, caught.value.field, caught.value.message


def arrow_with(**columns) -> bytes:
    return by_arrow({"ids": ["a", "b"]}, **columns)


def compressed() -> bytes:
    table = pa.table({"id": ["a"] * 100, "price": [0.0] * 100})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("body", "code", "field", "says"),
    [
        (b"", "malformed_arrow", None, "must be an Arrow IPC stream, got 0 bytes"),
        (b"{}", "malformed_arrow", None, "must be an Arrow IPC stream"),
        (b"\xff" * 64, "malformed_arrow", None, "must be an Arrow IPC stream"),
        (compressed(), "invalid_input", "candidates", "must not be compressed"),
        (arrow_with(colour=["x", "y"]), "invalid_input", "candidates.features.colour", "must have numbers, got string"),
        (
            arrow_with(price=[1.0, float("inf")]),
            "invalid_input",
            "candidates.features.price",
            "must fit into float32 (up to 3.4e38), value 1 is inf",
        ),
        (arrow_with(price=[-1e39, 0.0]), "invalid_input", "candidates.features.price", "value 0 is -1e+39"),
        (by_arrow({"ids": ["a", "a"]}), "invalid_input", "candidates.ids[1]", "got 'a' twice"),
        (by_arrow({"ids": ["a", None]}), "invalid_input", "id", "one is null"),
        (by_arrow({"price": [1]}), "invalid_input", "id", "must have one column id of strings, got 0"),
        (
            by_arrow({"ids": ["a"] * 9_999 + list("bc")}),
            "too_large",
            "candidates",
            "at most 10000 candidates, got 10001",
        ),
        (by_arrow({"ids": ["a"]}, {"top_k": 0}), "invalid_input", "top_k", "must be >= 1, got 0"),
        (by_arrow({"ids": ["a"]}, {"top": 1}), "invalid_input", "top", "is not a field"),
    ],
)
def test_a_wrong_stream_is_refused_with_its_rule_and_value(model, body, code, field, says):
    found = refused(lambda: Reader(LIMITS, model.sent).read(body, is_arrow=True))
    assert found[:2] == (code, field)
    assert says in found[2]


def test_dictionaries_of_a_stream_are_refused():
    body = by_arrow({"ids": ["a", "b"]}, types={"ids": pa.dictionary(pa.int32(), pa.string())})
    assert "schema and record batches alone" in refused(lambda: arrow.read(body, LIMITS))[2]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_stream_is_refused_or_read_and_never_worse(model, data):
    body = bytearray(arrow_with(price=[1.0, 2.0]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    sent = bytes(body[: data.draw(st.integers(0, len(body)))])
    with contextlib.suppress(InputError):
        Reader(LIMITS, model.sent).read(sent, is_arrow=True)


def test_without_pyarrow_a_stream_is_refused_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, says = refused(lambda: arrow.read(arrow_with(), LIMITS))
    assert code == "unsupported_media_type"
    assert "pip install 'rankyard[arrow]'" in says


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (by_row({"ids": ["a"], "price": [1e39]}), "candidates.features.price"),
        (by_column({"ids": ["a"], "price": [1e39]}), "candidates.features.price"),
    ],
)
def test_a_number_beyond_float32_is_named_in_rows_and_columns(model, body, says):
    code, field, message = refused(lambda: Reader(LIMITS, model.sent).read(body))
    assert (code, field) == ("invalid_input", says)
    assert "must fit into float32 (up to 3.4e38), value 0 is 1e+39" in message


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
def test_wrong_tensors_are_refused_with_their_rule_and_value(served, model, body, length, field, says):
    found = refused(lambda: inference.read(body, length, served, model, LIMITS))
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
def test_bytes_that_do_not_fit_the_shape_are_refused(served, model, raw, size, says):
    header = tensors(fp32(parameters={"binary_data_size": size}))
    assert says in refused(lambda: inference.read(header + raw, len(header), served, model, LIMITS))[2]


def test_infinity_is_refused_in_bytes_as_in_json(served, model):
    header = tensors(fp32(parameters={"binary_data_size": 20}))
    raw = np.array([1, 2, -np.inf, 4, 5], "<f4").tobytes()
    says = refused(lambda: inference.read(header + raw, len(header), served, model, LIMITS))[2]
    assert "features must fit into float32 (up to 3.4e38), value 2 is -inf" in says


def test_no_candidates_are_no_error_in_any_form(client):
    assert (
        client.post("/v1/rank", content=by_arrow({"ids": []}), headers={"content-type": ARROW}).json()["ranking"] == []
    )
    body = json.loads(tensors(fp32(shape=(0, 5), data=[])))
    assert client.post("/v2/models/trees/infer", json=body).json()["outputs"][0]["shape"] == [0, 1]


def explained(client: httpx.Client, **rest) -> dict:
    table = {"ids": ["a", "b", "c"], "price": [1, None, 3], "margin": [0.5, -1, 2]}
    answer = client.post("/v1/rank", content=by_column(table, **rest))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_explain_says_what_each_feature_added(client):
    answer = explained(client, explain=True, top_k=2)
    contributions = answer["contributions"]
    assert list(contributions["candidates"]) == [item["id"] for item in answer["ranking"]]
    for item in answer["ranking"]:
        parts = contributions["candidates"][item["id"]]
        assert tuple(parts) == NAMES
        assert contributions["base"] + sum(parts.values()) == pytest.approx(item["score"], abs=1e-5)
        assert set(answer["explanations"][item["id"]]) == set(NAMES)
    assert set(explained(client, explain="values")) == {"ranking", "models", "phases", "degraded", "explanations"}
    assert "explanations" not in explained(client)


def test_explain_takes_no_other_word(client):
    answer = client.post("/v1/rank", json={"candidates": [{"id": "a"}], "explain": "why"})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "explain"


def test_many_callers_in_every_form_at_once_each_get_their_own_scores(client, booster):
    random = np.random.default_rng(0)

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        n = int(random.integers(1, 40))
        matrix = random.normal(size=(n, 5)).astype(np.float32)
        expected = booster.inplace_predict(matrix).astype(np.float64)
        table = {
            "ids": [f"{number}-{i}" for i in range(n)],
            **dict(zip(NAMES, matrix.T.astype(float).tolist(), strict=True)),
        }
        form = [by_row, by_column, by_arrow][number % 3]
        answer = await http.post(
            "/v1/rank", content=form(table), headers={"content-type": ARROW} if form is by_arrow else {}
        )
        found = {item["id"]: item["score"] for item in answer.json()["ranking"]}
        assert found == dict(zip(table["ids"], expected.tolist(), strict=True))

    async def run() -> None:
        async with httpx.AsyncClient(base_url=client.base_url) as http:
            await asyncio.gather(*[ask(http, number) for number in range(150)])

    asyncio.run(run())


def test_predict_takes_every_line_by_row_or_by_column(served, booster):
    table = {"ids": ["a", "b"], "price": [1, 2], "age": [None, 3]}
    matrix = np.full((2, 5), np.nan, np.float32)
    matrix[:, 0], matrix[1, 4] = [1, 2], 3
    rows, columns = predict(served, [by_row(table).decode(), by_column(table, explain=True).decode()])
    expected = booster.inplace_predict(matrix).astype(np.float64).tolist()
    for answer in (rows, columns):
        assert {item["id"]: item["score"] for item in answer["ranking"]} == dict(zip("ab", expected, strict=True))
    assert msgspec.json.encode(columns["contributions"])

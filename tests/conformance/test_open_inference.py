"""Stock Triton clients against the gateway, on either runtime: every model, by its own inputs and by raw text."""

import asyncio
import gzip as gzip_
import json
import queue
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from google.protobuf import json_format
from grpc import RpcError
from grpc import insecure_channel as channel
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as service
from tritonclient.utils import InferenceServerException

from models.model import open_model
from models.ranking import RankRequest
from registry.deployment import Published, publish, resolve
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle
from tests.conformance.test_gateway import triton_runtime
from tests.serving.gateway.bundles import cross_bundle, joint_bundle, list_bundle
from tests.serving.gateway.conftest import gateway
from tests.tree_bundle import NAMES, grow, rows, tree_bundle

MODELS = ("o-intent", "o-joint", "o-trees", "o-list", "o-cross")
CONFIG = {
    "models": {"intent": "o-intent@champion", "tagging": "o-joint@champion"},
    "phases": [{"model": f"{name}@champion"} for name in ("o-trees", "o-list", "o-cross")],
    "grpc_port": 0,
}
TEXTS = ["red new balance shoes", "where order", "", "red"]
INPUTS = {
    "o-intent": {
        "ngram_ids": np.array([[3, 17, 512], [5, 512, 512]], np.int64),
        "ngram_counts": np.array([[1, 2, 0], [1, 0, 0]], np.float32),
    },
    "o-joint": {
        "input_ids": np.array([[1, 3, 6, 2], [1, 7, 2, 0]], np.int64),
        "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.int64),
    },
    "o-trees": {"features": rows(70, 3)},
    "o-list": {
        "features": np.array([[[1], [3], [8]], [[2], [6], [0]]], np.float32),
        "mask": np.array([[1, 1, 1], [1, 1, 0]], np.float32),
    },
    "o-cross": {
        "input_ids": np.tile(np.array([[1, 3, 2, 6], [1, 4, 2, 0]], np.int64), (20, 1)),
        "attention_mask": np.tile(np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.int64), (20, 1)),
    },
}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Path:
    directory, bundles = tmp_path_factory.mktemp("deployment"), tmp_path_factory.mktemp("bundles")
    made = {
        "o-intent": ("3", tiny_bundle(bundles, "intent")),
        "o-joint": ("1", joint_bundle(bundles)),
        "o-trees": ("4", tree_bundle(bundles, grow(15))),
        "o-list": ("1", list_bundle(bundles)),
        "o-cross": ("2", cross_bundle(bundles)),
    }
    for name, (version, bundle) in made.items():
        publish(directory, name, {"champion": Published(version, bundle)})
    return directory


@pytest.fixture(scope="module")
def served(deployment) -> dict[str, ServedModel]:
    return {name: ServedModel(*resolve(deployment, f"{name}@champion")) for name in MODELS}


@pytest.fixture(scope="module", params=["onnx", "triton"])
def client(request, deployment, served) -> Iterator[httpx.Client]:
    config = dict(CONFIG)
    if request.param == "triton":
        triton_server = request.getfixturevalue("triton_server")
        triton_server.serve(list(served.values()))
        config |= triton_runtime(triton_server)
    with gateway(deployment, config) as opened:
        yield opened


@pytest.fixture(params=[http, grpc], ids=["http", "grpc"])
def api(request):
    return request.param


@pytest.fixture
def stock(api, client):
    if api is http:
        opened = http.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}", concurrency=4)
    else:
        opened = grpc.InferenceServerClient(client.grpc)
    with opened:
        yield opened


def alone(model: ServedModel, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime itself says of a batch."""
    session = ort.InferenceSession(model.bundle.model_file(model.bundle.variant), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, arrays), strict=True))
    return {name: array[:, None] if array.ndim == 1 else array for name, array in found.items()}


def sent(api, arrays: dict[str, np.ndarray], **options) -> list:
    tensors = []
    for name, array in arrays.items():
        kind = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "object": "BYTES"}[array.dtype.name]
        tensors.append(api.InferInput(name, list(array.shape), kind))
        tensors[-1].set_data_from_numpy(array, **options)
    return tensors


def response(found) -> dict:
    """The JSON of an answer, whatever it came by."""
    answer = found.get_response()
    return answer if isinstance(answer, dict) else json_format.MessageToDict(answer, preserving_proto_field_name=True)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_its_own_inputs_as_onnx_runtime_does(api, stock, served, name):
    expected = alone(served[name], INPUTS[name])
    found = stock.infer(name, sent(api, INPUTS[name]), request_id="7")
    answer = response(found)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", name, served[name].version)
    for output, array in expected.items():
        np.testing.assert_allclose(found.as_numpy(output), array, rtol=0, atol=1e-5)


@pytest.mark.parametrize("api", [http], ids=["http"], indirect=True)
@pytest.mark.parametrize("name", MODELS)
def test_json_tensors_say_the_same(api, stock, served, name):
    arrays = {key: np.nan_to_num(array) for key, array in INPUTS[name].items()}  # JSON has no NaN
    expected = alone(served[name], arrays)
    outputs = [http.InferRequestedOutput(output, binary_data=False) for output in expected]
    found = stock.infer(name, sent(api, arrays, binary_data=False), outputs=outputs)
    for output, array in expected.items():
        assert "data" in found.get_output(output)
        np.testing.assert_allclose(found.as_numpy(output), array, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["o-intent", "o-joint"])
def test_raw_texts_are_read_as_the_model_reads_them(api, stock, served, name):
    texts = np.array(TEXTS, object)
    model = open_model(served[name].bundle.path, served[name].bundle.manifest)
    found = stock.infer(name, sent(api, {"text": texts[:, None]}))
    for row, text in enumerate(TEXTS):
        encoded = {key: array[None] for key, array in model.encode(text).arrays.items()}
        for output, array in alone(served[name], encoded).items():
            answered = found.as_numpy(output)[row]
            np.testing.assert_allclose(answered[: array.shape[1]], array[0], rtol=0, atol=1e-5)
            assert not answered[array.shape[1] :].any()  # padding


def test_a_cross_encoder_reads_a_query_and_texts_in_their_order(api, stock, served):
    texts = [f"{'red ' * (n % 3)}shoes" for n in range(40)]
    model = open_model(served["o-cross"].bundle.path, served["o-cross"].bundle.manifest)
    encoded = model.encode(RankRequest(ids=("",) * 40, text="new", texts=tuple(texts)))
    tensors = sent(api, {"query": np.array(["new"], object), "text": np.array(texts, object)})
    expected = alone(served["o-cross"], dict(encoded.arrays))["score"]
    np.testing.assert_allclose(stock.infer("o-cross", tensors).as_numpy("score"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "names"), [("o-trees", NAMES), ("o-list", ("price",))])
def test_a_ranker_reads_one_tensor_a_feature(api, stock, served, name, names):
    columns = dict(zip(names, rows(9, 5).astype(np.float16).T, strict=False))
    matrix = np.stack(list(columns.values()), axis=1).astype(np.float32)
    arrays = {"features": matrix} if name == "o-trees" else {"features": matrix[None], "mask": np.ones((1, 9), "f4")}
    expected = alone(served[name], arrays)["score"].reshape(-1, 1)
    found = stock.infer(name, sent(api, {key: np.ascontiguousarray(column) for key, column in columns.items()}))
    np.testing.assert_allclose(found.as_numpy("score"), expected, rtol=0, atol=1e-5)


def test_only_the_outputs_that_are_asked_for_come(api, stock):
    for names in (["intent_logits", "tag_logits"], ["tag_logits"]):
        outputs = [api.InferRequestedOutput(name) for name in names]
        found = stock.infer("o-joint", sent(api, INPUTS["o-joint"]), outputs=outputs)
        assert [output["name"] for output in response(found)["outputs"]] == names


@pytest.mark.parametrize("api", [http], ids=["http"], indirect=True)
def test_each_output_comes_in_the_form_that_is_asked_for(api, stock):
    outputs = [
        http.InferRequestedOutput("intent_logits", binary_data=False),
        http.InferRequestedOutput("tag_logits", binary_data=True),
    ]
    found = stock.infer("o-joint", sent(api, INPUTS["o-joint"]), outputs=outputs)
    assert "data" in found.get_output("intent_logits")
    assert found.get_output("tag_logits")["parameters"] == {"binary_data_size": 2 * 4 * 4 * 4}


@pytest.mark.parametrize("name", MODELS)
def test_no_rows_get_no_answers(api, stock, served, name):
    empty = {key: array[:0] for key, array in INPUTS[name].items()}
    found = stock.infer(name, sent(api, empty))
    for spec in served[name].bundle.manifest.signature.outputs:
        assert len(found.as_numpy(spec.name)) == 0


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tensors_travel_compressed(api, stock, served, algorithm):
    many = {"features": rows(1_000, 6)}
    both = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    found = stock.infer("o-trees", sent(api, many), **(both if api is http else {"compression_algorithm": algorithm}))
    np.testing.assert_allclose(found.as_numpy("score"), alone(served["o-trees"], many)["score"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_an_answer_is_compressed_where_that_is_asked(client, algorithm):
    body = {"inputs": [{"name": "features", "shape": [1_000, 5], "datatype": "FP32", "data": [0.0] * 5_000}]}
    answer = client.post(
        "/v2/models/o-trees/infer",
        content=gzip_.compress(json.dumps(body).encode()),
        headers={"content-encoding": "gzip", "accept-encoding": algorithm},
    )
    assert answer.headers["content-encoding"] == algorithm
    assert len(answer.json()["outputs"][0]["data"]) == 1_000


def test_a_message_that_decompresses_to_more_than_a_body_may_have_is_refused(client):
    bomb = {"features": np.zeros((300_000, 5), np.float32)}
    with grpc.InferenceServerClient(client.grpc) as stock:
        for options in ({}, {"compression_algorithm": "gzip"}):
            with pytest.raises(InferenceServerException, match="larger than max") as caught:
                stock.infer("o-trees", sent(grpc, bomb), **options)
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    with http.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as stock:
        with pytest.raises(InferenceServerException, match="4194304 bytes when it is decompressed") as caught:
            stock.infer("o-trees", sent(http, bomb), request_compression_algorithm="gzip")
        assert caught.value.status() == "413"


LISTS = [{"features": rows(n + 1, n)} for n in range(40)]


def test_requests_at_once_each_get_their_own_answer(api, stock, served):
    answers: queue.Queue = queue.Queue()
    if api is http:
        for number, waiting in enumerate([stock.async_infer("o-trees", sent(api, arrays)) for arrays in LISTS]):
            answers.put((str(number), waiting.get_result(), None))
    else:
        for number, arrays in enumerate(LISTS):
            stock.async_infer("o-trees", sent(api, arrays), partial(_keep, answers), request_id=str(number))
    check_lists(answers, served)


def test_a_stream_answers_in_order_and_a_bad_request_fails_alone(client, served):
    answers: queue.Queue = queue.Queue()
    with grpc.InferenceServerClient(client.grpc) as stock:
        stock.start_stream(partial(_keep, answers))
        for number, arrays in enumerate(LISTS):
            stock.async_stream_infer("o-trees", sent(grpc, arrays), request_id=str(number))
        found = [answers.get(timeout=60) for _ in LISTS]
        assert [one[0] for one in found] == [str(number) for number in range(len(LISTS))]
        check_lists(found, served)
        stock.async_stream_infer("o-trees", sent(grpc, {"features": np.zeros((1, 2), np.float32)}))
        stock.async_stream_infer("o-trees", sent(grpc, LISTS[0]), request_id="0")
        assert "got [1, 2]" in answers.get(timeout=60)[2].message()
        check_lists([answers.get(timeout=60)], served)
        stock.stop_stream()


def _keep(answers: queue.Queue, result, error) -> None:
    answers.put(("" if result is None else result.get_response().id, result, error))


def check_lists(answers, served: dict[str, ServedModel]) -> None:
    found = [answers.get(timeout=60) for _ in LISTS] if isinstance(answers, queue.Queue) else answers
    for identity, result, error in found:
        assert error is None, error
        expected = alone(served["o-trees"], LISTS[int(identity)])["score"]
        np.testing.assert_allclose(result.as_numpy("score"), expected, rtol=0, atol=1e-5)


def test_values_that_are_not_raw_are_read_too(client, served):
    """As clients in other languages send them; Triton's own writes bytes alone."""
    arrays = INPUTS["o-joint"]
    expected = alone(served["o-joint"], arrays)["intent_logits"]
    with channel(client.grpc) as opened:
        call = service.GRPCInferenceServiceStub(opened).ModelInfer
        request = messages.ModelInferRequest(model_name="o-joint", outputs=[{"name": "intent_logits"}])
        for name, array in arrays.items():
            tensor = request.inputs.add(name=name, datatype="INT64", shape=array.shape)
            tensor.contents.int64_contents.extend(array.ravel().tolist())
        found = np.frombuffer(call(request).raw_output_contents[0], "<f4").reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        request.raw_input_contents.extend([b"", b""])
        with pytest.raises(RpcError, match="must have raw bytes or contents, got both"):
            call(request)


def test_the_server_and_its_models_describe_themselves(api, stock, served):
    assert stock.is_server_live()
    assert stock.is_server_ready()
    as_json = {} if api is http else {"as_json": True}
    assert stock.get_server_metadata(**as_json)["name"] == "rankyard"
    index = stock.get_model_repository_index(**as_json)
    assert {(one["name"], one["state"]) for one in (index if api is http else index["models"])} == {
        (name, "READY") for name in MODELS
    }
    for name, model in served.items():
        assert stock.is_model_ready(name)
        assert stock.is_model_ready(name, model.version)
        assert not stock.is_model_ready(name, "99")
        metadata = stock.get_model_metadata(name, model.version, **as_json)
        assert metadata["versions"] == [model.version]
        assert [tensor["name"] for tensor in metadata["inputs"]] == list(INPUTS[name])
        for tensor in metadata["inputs"]:
            wanted = INPUTS[name][tensor["name"]].shape
            assert all(int(size) in (-1, n) for size, n in zip(tensor["shape"], wanted, strict=True))
        config = stock.get_model_config(name, **as_json)
        config = config if api is http else config["config"]
        assert config["name"] == name
        assert [tensor["name"] for tensor in config["input"]] == list(INPUTS[name])


def test_a_configuration_is_one_that_triton_itself_could_have_given(api, stock, served, triton_server):
    triton_server.serve(list(served.values()))
    running = triton_server.running
    with api.InferenceServerClient(running.http if api is http else running.grpc) as triton:
        for name in MODELS:
            theirs, ours = (
                one.get_model_config(name) if api is http else one.get_model_config(name, as_json=True)["config"]
                for one in (triton, stock)
            )
            assert set(ours) <= set(theirs) | {"platform"}
            for key in ("input", "output"):
                dims = [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in theirs[key]]
                assert [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in ours[key]] == dims
            expected, metadata = (
                one.get_model_metadata(name, **({} if api is http else {"as_json": True})) for one in (triton, stock)
            )
            assert metadata == expected | {"platform": "onnxruntime_onnx"}


TREES = INPUTS["o-trees"]["features"]
REFUSED = {
    "unknown model": ("none", {"features": TREES}, {}, (404, "NOT_FOUND"), "one of those served"),
    "unknown version": ("o-trees", {"features": TREES}, {"model_version": "9"}, (404, "NOT_FOUND"), "got o-trees/9"),
    "unknown output": (
        "o-trees",
        {"features": TREES},
        {"outputs": ["nope"]},
        (400, "INVALID_ARGUMENT"),
        "one of score for o-trees/4, got 'nope'",
    ),
    "wrong shape": ("o-trees", {"features": TREES[:, :4].copy()}, {}, (400, "INVALID_ARGUMENT"), "got [70, 4]"),
    "missing input": (
        "o-joint",
        {"input_ids": INPUTS["o-joint"]["input_ids"]},
        {},
        (400, "INVALID_ARGUMENT"),
        "'attention_mask' is missing",
    ),
    "unknown token": (
        "o-joint",
        INPUTS["o-joint"] | {"input_ids": np.full((2, 4), 99)},
        {},
        (400, "INVALID_ARGUMENT"),
        "from 0 to 8 for o-joint/1, got 99",
    ),
    "too many rows": (
        "o-intent",
        {"text": np.array(["x"] * 257, object)},
        {},
        (413, "INVALID_ARGUMENT"),
        "at most 256 rows, got 257",
    ),
    "deadline": ("o-trees", {"features": TREES}, {"timeout": 1}, (504, "DEADLINE_EXCEEDED"), "deadline"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_the_clients_own_error_with_tritons_status(api, stock, case):
    name, arrays, options, (status, code), says = REFUSED[case]
    options = dict(options)
    if "outputs" in options:
        n_classes = options.pop("class_count", 0)
        options["outputs"] = [api.InferRequestedOutput(one, class_count=n_classes) for one in options["outputs"]]
    with pytest.raises(InferenceServerException) as caught:
        stock.infer(name, sent(api, arrays), **options)
    assert caught.value.status() == (str(status) if api is http else f"StatusCode.{code}")
    assert says in caught.value.message()


@pytest.mark.parametrize("is_binary", [True, False])
def test_best_classes_come_with_their_labels(api, stock, served, is_binary):
    def ask(**wanted):
        if api is http:
            wanted["binary_data"] = is_binary
        output = api.InferRequestedOutput("intent_logits", **wanted)
        texts = {"text": np.array(["red shoes", "where order"], object)}
        return stock.infer("o-joint", sent(api, texts), outputs=[output]).as_numpy("intent_logits")

    logits, labels = ask(class_count=0), served["o-joint"].bundle.manifest.labels
    expected = [
        [f"{row[place]:.6f}:{place}:{labels[place]}" for place in sorted(range(len(row)), key=lambda n: -row[n])]
        for row in logits.tolist()
    ]
    for n, n_given in ((1, 1), (2, 2), (50, len(labels))):
        best = ask(class_count=n)
        assert best.shape == (2, n_given)
        texts = [[one.decode() if isinstance(one, bytes) else one for one in row] for row in best]
        assert texts == [row[:n_given] for row in expected]


def test_classes_without_names_are_numbered(api, stock):
    output = api.InferRequestedOutput("score", class_count=1)
    (best,) = stock.infer("o-trees", sent(api, {"features": TREES[:1]}), outputs=[output]).as_numpy("score").ravel()
    (score,) = stock.infer("o-trees", sent(api, {"features": TREES[:1]})).as_numpy("score").ravel()
    assert best.decode() == f"{score:.6f}:0"


def test_models_come_and_go_by_promotion_alone(stock):
    for control in (stock.load_model, stock.unload_model):
        with pytest.raises(InferenceServerException, match="by promotion, they cannot be loaded or unloaded"):
            control("o-trees")


def test_what_the_gateway_has_not_is_said_so(client):
    with grpc.InferenceServerClient(client.grpc) as stock:
        for ask in (stock.get_system_shared_memory_status, stock.get_trace_settings, stock.get_log_settings):
            with pytest.raises(InferenceServerException, match="must be asked of a Triton server") as caught:
                ask()
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def stats(stock, name: str, version: str = "") -> dict:
    found = stock.get_inference_statistics(
        name, version, **({} if isinstance(stock, http.InferenceServerClient) else {"as_json": True})
    )
    (model,) = found["model_stats"]
    return model


def counts(model: dict) -> dict[str, int]:
    """Every count; gRPC's JSON leaves zeros out and writes large numbers as texts."""
    named = {name: int(model["inference_stats"][name].get("count", 0)) for name in model["inference_stats"]}
    batches = {int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in model.get("batch_stats", [])}
    return Counter(
        {
            "rows": int(model.get("inference_count", 0)),
            "batches": int(model.get("execution_count", 0)),
            "rows by size": sum(size * count for size, count in batches.items()),
            "batches by size": sum(batches.values()),
            **named,
        }
    )


def test_statistics_agree_with_what_was_sent(api, stock, client):
    before = {name: counts(stats(stock, name)) for name in ("o-trees", "o-joint")}
    for arrays in LISTS:
        stock.infer("o-trees", sent(api, arrays))
    grown = counts(stats(stock, "o-trees", "4"))
    grown.subtract(before["o-trees"])
    n_rows = sum(range(1, len(LISTS) + 1))
    once = dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), len(LISTS))
    assert +grown == Counter(
        once | {"batches": len(LISTS), "batches by size": len(LISTS), "rows": n_rows, "rows by size": n_rows}
    )
    for text in ("red shoes", "where order", "balance"):
        client.post("/v1/understand", json={"query": text + api.__name__})
    assert client.post("/v1/understand", json={"query": "red " * 20}).status_code == 422
    stock.infer("o-joint", sent(api, INPUTS["o-joint"]))
    with pytest.raises(InferenceServerException):
        stock.infer("o-joint", sent(api, INPUTS["o-joint"]), timeout=1)
    with pytest.raises(InferenceServerException):
        stock.infer("o-joint", sent(api, {"text": np.array([1.0], np.float32)}))
    grown = counts(stats(stock, "o-joint"))
    grown.subtract(before["o-joint"])
    # Two rows of one request are queued each by itself; what breaks a rule or is late asks no model.
    assert (grown["success"], grown["fail"], grown["rows"]) == (4, 1, 5)
    assert grown["rows by size"] == grown["rows"]
    assert grown["batches by size"] == grown["batches"] <= 5


def test_statistics_add_up_to_the_time_that_passed(api, stock):
    before, started = stats(stock, "o-trees"), time.perf_counter_ns()
    for _ in range(20):
        stock.infer("o-trees", sent(api, {"features": TREES}))
    passed, after = time.perf_counter_ns() - started, stats(stock, "o-trees")
    spent = {
        name: int(after["inference_stats"][name].get("ns", 0)) - int(before["inference_stats"][name].get("ns", 0))
        for name in ("success", "queue", "compute_input", "compute_infer", "compute_output")
    }
    assert all(spent.values())
    assert spent["queue"] + spent["compute_infer"] < spent["success"] + 20_000  # rounded, each
    assert spent["success"] + spent["compute_input"] + spent["compute_output"] < passed
    assert abs(int(after["last_inference"]) / 1e3 - time.time()) < 60


def test_statistics_of_all_models_are_one_answer(api, stock):
    found = stock.get_inference_statistics(**({} if api is http else {"as_json": True}))
    assert {model["name"] for model in found["model_stats"]} == set(MODELS)
    with pytest.raises(InferenceServerException, match="one of those served"):
        stock.get_inference_statistics("none")


@pytest.mark.parametrize("library", [http_aio, grpc_aio], ids=["http", "grpc"])
def test_asynchronous_clients_are_answered_at_once(client, served, library):
    address = client.grpc if library is grpc_aio else f"{client.base_url.host}:{client.base_url.port}"

    async def ask() -> list:
        async with library.InferenceServerClient(address) as stock:
            assert await stock.is_model_ready("o-trees")
            asked = [stock.infer("o-trees", sent(library, arrays), request_id=str(n)) for n, arrays in enumerate(LISTS)]
            return await asyncio.gather(*asked)

    check_lists([(response(found)["id"], found, None) for found in asyncio.run(ask())], served)

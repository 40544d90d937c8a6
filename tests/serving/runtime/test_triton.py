"""What the Triton runtime does beyond tests/conformance/test_runtime.py: a server's faults, batches across callers."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest

from models.batch import collate
from models.errors import DeadlineError, NotFoundError, ParityError, RankyardError, UnavailableError
from models.model import open_model
from registry import golden
from serving.runtime import triton
from serving.runtime.protocol import ServedModel
from serving.runtime.triton import TritonRuntime
from serving.triton import server
from serving.triton.settings import TritonSettings
from tests.bundles import FEATURES, TEXT, tiny_bundle
from tests.serving.gateway.bundles import joint_bundle
from tests.triton_server import TritonServer, needs_triton


@pytest.fixture(scope="module")
def ranking(tmp_path_factory) -> ServedModel:
    return ServedModel("t-ranking", "1", tiny_bundle(tmp_path_factory.mktemp("ranking"), "ranking"))


@pytest.fixture(scope="module")
def runtime_server(triton_server, ranking) -> TritonServer:
    triton_server.serve([ranking])
    return triton_server


def one_row(popularity: float = 1.0) -> dict[str, np.ndarray]:
    return {"features": np.array([[np.nan, popularity]], dtype=np.float32)}


def counts(opened: TritonServer, name: str, n_rows: int) -> dict[str, int]:
    """What the server has counted once it has counted so many rows: after an answer that takes it a moment."""
    give_up_at = time.monotonic() + 60
    while True:
        url = f"http://{opened.running.http}/v2/models/{name}/versions/1/stats"
        with urllib.request.urlopen(url, timeout=60) as answer:
            found: dict[str, int] = json.load(answer)["model_stats"][0]
        if found["inference_count"] >= n_rows:
            return found
        assert time.monotonic() < give_up_at, found
        time.sleep(0.05)


def test_no_server_is_unavailable(ranking):
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]

    async def load():
        runtime = TritonRuntime(f"127.0.0.1:{port}")
        try:
            await runtime.load(ranking)
        finally:
            await runtime.close()

    with pytest.raises(UnavailableError, match=f"must answer on 127.0.0.1:{port}.*rankyard triton up"):
        asyncio.run(load())


def test_a_server_that_accepts_and_never_answers_is_given_up_in_time(ranking, monkeypatch):
    monkeypatch.setattr(triton, "_LOAD_TIMEOUT_S", 0.4)

    async def load(port: int):
        runtime = TritonRuntime(f"127.0.0.1:{port}")
        try:
            await runtime.load(ranking)
        finally:
            await runtime.close()

    started = time.monotonic()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(DeadlineError, match="t-ranking/1 must answer within 400 ms"),
    ):
        asyncio.run(load(silent.getsockname()[1]))
    assert time.monotonic() - started < 20  # gRPC alone would wait so long for the server's first word


def test_a_proxy_does_not_stand_between(runtime_server, ranking, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    runtime_server.http.expect_live()

    async def load():
        runtime = TritonRuntime(runtime_server.running.grpc)
        await runtime.load(ranking)
        await runtime.close()

    asyncio.run(load())


def test_a_server_that_hangs_is_given_up_in_time_and_asked_again_when_it_is_back(runtime_server, ranking):
    async def ask():
        runtime = TritonRuntime(runtime_server.running.grpc)
        await runtime.load(ranking)
        with runtime_server.hung(), pytest.raises(DeadlineError, match="t-ranking/1 must answer within 300 ms"):
            await asyncio.wait_for(runtime.infer(ranking, one_row(), timeout_s=0.3), 30)
        answer = await runtime.infer(ranking, one_row(4.0), timeout_s=60)
        await runtime.close()
        return answer["score"].tolist()

    assert asyncio.run(ask()) == [4.0]


def test_another_bundle_under_the_name_is_not_this_model(runtime_server, ranking, tmp_path):
    other = replace(ranking, bundle=tiny_bundle(tmp_path, "ranking", weights=np.array([1, 2], dtype=np.float32)))

    async def load():
        runtime = TritonRuntime(runtime_server.running.grpc)
        try:
            await runtime.load(other)
        finally:
            await runtime.close()

    with pytest.raises(NotFoundError, match=other.bundle.digest[:12]) as raised:
        asyncio.run(load())
    assert ranking.bundle.digest[:12] in raised.value.message


def test_a_model_or_version_that_was_never_deployed_is_not_found(runtime_server, ranking):
    async def load(model: ServedModel):
        runtime = TritonRuntime(runtime_server.running.grpc)
        try:
            await runtime.load(model)
        finally:
            await runtime.close()

    for model in (replace(ranking, name="t-nothing"), replace(ranking, version="9")):
        with pytest.raises(NotFoundError, match=f"must have {model.ref}.*rankyard deploy {model.name}"):
            asyncio.run(load(model))


def test_a_model_that_fails_its_golden_rows_is_not_loaded(runtime_server, ranking, tmp_path):
    spoilt = replace(ranking, bundle=replace(ranking.bundle, path=tmp_path))
    rows = json.loads((ranking.bundle.path / golden.FILE).read_text())
    rows["rows"][0]["outputs"]["float32"]["score"][0] += 0.5
    (tmp_path / golden.FILE).write_text(json.dumps(rows))

    async def load():
        runtime = TritonRuntime(runtime_server.running.grpc)
        with pytest.raises(ParityError, match="golden row 0"):
            await runtime.load(spoilt)
        try:
            await runtime.infer(spoilt, one_row(), timeout_s=1)
        finally:
            await runtime.close()

    with pytest.raises(UnavailableError, match="must be loaded"):
        asyncio.run(load())


@needs_triton
def test_a_server_that_was_killed_and_started_again_is_found_again(ranking, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_USUAL_PORTS", server._ports((0, 0, 0)))

    async def ask():
        opened = TritonServer(await asyncio.to_thread(server.up, tmp_path, tmp_path / "repository"))
        await asyncio.to_thread(opened.serve, [ranking])
        runtime = TritonRuntime(opened.running.grpc)
        await runtime.load(ranking)
        os.kill(opened.running.pid, signal.SIGKILL)
        while server.status(tmp_path) is not None:
            await asyncio.sleep(0.01)
        for _ in range(3):
            with pytest.raises(UnavailableError):
                await runtime.infer(ranking, one_row(), timeout_s=60)
            await asyncio.sleep(0.2)
        opened = TritonServer(await asyncio.to_thread(server.up, tmp_path, tmp_path / "repository"))
        await asyncio.to_thread(opened.serve, [ranking])
        answer = None
        for _ in range(600):
            with contextlib.suppress(UnavailableError):
                answer = await runtime.infer(ranking, one_row(4.0), timeout_s=60)
                break
            await asyncio.sleep(0.1)
        await runtime.close()
        return answer["score"].tolist()

    try:
        assert asyncio.run(ask()) == [4.0]
    finally:
        server.down(tmp_path)


def test_requests_of_several_callers_run_as_one_batch(triton_server, ranking):
    model = replace(ranking, name="t-batching")
    triton_server.serve([model], TritonSettings(n_instances=1, max_queue_delay_us=200_000))
    # What warms it up, and the golden rows: alone, together and alone again, and once more for the runtime.
    n_before = 32 + 4 * sum(row.encoded.length for row in golden.read(model.bundle))

    async def ask():
        runtime = TritonRuntime(triton_server.running.grpc)
        await runtime.load(model)
        before = counts(triton_server, model.name, n_before)
        answers = await asyncio.gather(*(runtime.infer(model, one_row(n), timeout_s=60) for n in range(64)))
        after = counts(triton_server, model.name, n_before + 64)
        await runtime.close()
        return answers, before, after

    answers, before, after = asyncio.run(ask())
    assert [answer["score"].tolist() for answer in answers] == [[n] for n in range(64)]
    assert (before["inference_count"], after["inference_count"]) == (n_before, n_before + 64)
    assert after["execution_count"] - before["execution_count"] <= 16


def test_a_request_that_fails_in_a_batch_fails_alone(triton_server, tmp_path):
    model = ServedModel("t-alone", "1", tiny_bundle(tmp_path, "intent"))
    triton_server.serve([model], TritonSettings(n_instances=1, max_queue_delay_us=20_000))

    async def ask():
        runtime = TritonRuntime(triton_server.running.grpc)
        await runtime.load(model)
        ids = [1, 2, 3, TEXT.n_buckets + 1_000, 4, 5]
        requests = [
            {"ngram_ids": np.array([[one]]), "ngram_counts": np.array([[1.0]], dtype=np.float32)} for one in ids
        ]
        answers = await asyncio.gather(
            *(runtime.infer(model, one, timeout_s=60) for one in requests), return_exceptions=True
        )
        await runtime.close()
        return answers

    answers = asyncio.run(ask())
    assert [isinstance(answer, RankyardError) for answer in answers] == [False, False, False, True, False, False]
    assert "ONNX Runtime failed on a batch" in answers[3].message


def test_many_callers_on_two_instances_all_get_right_answers(triton_server, tmp_path):
    """Tensors cross the backend's shared memory without a copy; a piece read too late would be another one's."""
    lists = ServedModel("t-lists", "1", tiny_bundle(tmp_path, "ranking"))
    texts = ServedModel("t-texts", "1", joint_bundle(tmp_path))
    triton_server.serve([lists, texts], TritonSettings(n_instances=2))
    model = open_model(texts.bundle.path, texts.bundle.manifest)
    words = ["red", "new balance", "shoes", "where order", "red new balance shoes"]
    encoded = [model.encode(text) for text in words]
    signature = texts.bundle.manifest.signature
    n_each = 40

    async def score(runtime: TritonRuntime, seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(n_each):
            features_DF = random.normal(size=(random.integers(1, 300), len(FEATURES))).astype(np.float32)
            expected_D = features_DF[:, 1] - features_DF[:, 0] / 100
            answer = await runtime.infer(lists, {"features": features_DF}, timeout_s=60)
            np.testing.assert_allclose(answer["score"], expected_D, atol=1e-5)

    async def read(runtime: TritonRuntime, expected: list, seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(n_each):
            one = int(random.integers(len(words)))
            answer = await runtime.infer(texts, collate([encoded[one]], signature), timeout_s=60)
            for name, array in expected[one].items():
                np.testing.assert_array_equal(answer[name], array)

    async def ask():
        runtime = TritonRuntime(triton_server.running.grpc)
        for served in (lists, texts):
            await runtime.load(served)
        expected = [await runtime.infer(texts, collate([one], signature), timeout_s=60) for one in encoded]
        await asyncio.gather(
            *(score(runtime, seed) for seed in range(32)), *(read(runtime, expected, seed) for seed in range(32))
        )
        await runtime.close()

    asyncio.run(ask())

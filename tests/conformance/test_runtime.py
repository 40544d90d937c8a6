"""What every runtime must do. A runtime joins by an entry in RUNTIMES: served models in, an opened runtime out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from models.answers import Reading
from models.batch import Encoded, collate, split
from models.errors import DeadlineError, RankyardError, UnavailableError
from models.model import open_model
from models.ranking import RankRequest
from registry import golden
from serving.runtime.fallback import FallbackRuntime
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import Runtime, ServedModel
from serving.runtime.triton import TritonRuntime
from tests.bundles import FEATURES, PHRASES, tiny_bundle
from tests.serving.gateway.bundles import cross_bundle, joint_bundle, list_bundle
from tests.triton_server import TritonServer

Open = Callable[[Sequence[ServedModel]], AbstractAsyncContextManager[Runtime]]


@asynccontextmanager
async def onnx(_models: Sequence[ServedModel]) -> AsyncIterator[Runtime]:
    runtime = OnnxRuntime(n_workers=2)
    try:
        yield runtime
    finally:
        await runtime.close()


@asynccontextmanager
async def triton(server: TritonServer, models: Sequence[ServedModel]) -> AsyncIterator[Runtime]:
    await asyncio.to_thread(server.serve, models)
    runtime = TritonRuntime(server.running.grpc)
    try:
        yield runtime
    finally:
        await runtime.close()


@asynccontextmanager
async def fallback(server: TritonServer, models: Sequence[ServedModel]) -> AsyncIterator[Runtime]:
    await asyncio.to_thread(server.serve, models)
    runtime = FallbackRuntime(TritonRuntime(server.running.grpc), OnnxRuntime(n_workers=2))
    try:
        yield runtime
    finally:
        await runtime.close()


RUNTIMES: dict[str, Callable[[pytest.FixtureRequest], Open]] = {
    "fallback": lambda request: partial(fallback, request.getfixturevalue("triton_server")),
    "onnx": lambda _request: onnx,
    "triton": lambda request: partial(triton, request.getfixturevalue("triton_server")),
}


@pytest.fixture(params=sorted(RUNTIMES))
def open_runtime(request) -> Open:
    return RUNTIMES[request.param](request)


@pytest.fixture(scope="module")
def cross(tmp_path_factory) -> ServedModel:
    return ServedModel("tiny-cross", "1", cross_bundle(tmp_path_factory.mktemp("cross")))


@pytest.fixture(scope="module")
def whole_list(tmp_path_factory) -> ServedModel:
    return ServedModel("tiny-list", "1", list_bundle(tmp_path_factory.mktemp("list")))


@pytest.fixture(scope="module")
def intent(tmp_path_factory) -> ServedModel:
    return ServedModel("tiny-intent", "1", tiny_bundle(tmp_path_factory.mktemp("intent")))


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> ServedModel:
    return ServedModel("tiny-joint", "1", joint_bundle(tmp_path_factory.mktemp("joint")))


@pytest.fixture(scope="module")
def ranking(tmp_path_factory) -> ServedModel:
    return ServedModel("tiny-ranking", "1", tiny_bundle(tmp_path_factory.mktemp("ranking"), "ranking"))


def test_a_runtime_repeats_the_golden_rows(open_runtime, intent, joint, ranking):
    async def ask():
        async with open_runtime([intent, joint, ranking]) as runtime:
            for model in (intent, joint, ranking):
                await runtime.load(model)
                signature = model.bundle.manifest.signature
                for row in golden.read(model.bundle):
                    found = await runtime.infer(model, collate([row.encoded], signature), timeout_s=60)
                    expected = row.outputs[model.bundle.variant]
                    answer = split(found, [row.encoded], signature)[0]
                    assert set(answer) == set(expected)
                    for name, array in expected.items():
                        np.testing.assert_allclose(answer[name], array, atol=model.bundle.manifest.tolerance)
                        assert answer[name].dtype == array.dtype

    asyncio.run(ask())


def test_a_batch_of_n_equals_n_singles(open_runtime, intent, joint, ranking):
    async def ask():
        async with open_runtime([intent, joint, ranking]) as runtime:
            for model in (intent, joint, ranking):
                await runtime.load(model)
                signature = model.bundle.manifest.signature
                requests = [row.encoded for row in golden.read(model.bundle)]
                together = split(
                    await runtime.infer(model, collate(requests, signature), timeout_s=60), requests, signature
                )
                for request, answer in zip(requests, together, strict=True):
                    alone = await runtime.infer(model, collate([request], signature), timeout_s=60)
                    for name, array in split(alone, [request], signature)[0].items():
                        # Outputs of tokens are padded to the longest text of the batch.
                        found = answer[name][: array.shape[0]] if array.ndim else answer[name]
                        np.testing.assert_allclose(found, array, atol=1e-5)

    asyncio.run(ask())


QUERIES = [*(text for texts in PHRASES.values() for text in texts), "", "Red, NEW balance shoes", "where is it"]
CANDIDATES = [
    RankRequest(
        ids=("a", "b", "c", "d", "e"),
        features={
            "price": np.array([20, np.nan, 20, np.inf, 0], dtype=np.float32),
            "popularity": np.array([1.5, 1.3, 1.5, 3, np.nan], dtype=np.float32),
        },
    ),
    RankRequest(ids=("a", "b", "c"), query_features={"price": float("nan")}),
]


PRICES = [
    RankRequest(ids=("a", "b", "c"), features={"price": np.array([1.0, 3.0, 8.0], dtype=np.float32)}),
    RankRequest(ids=("a", "b"), features={"price": np.array([5.0, 7.0], dtype=np.float32)}),
]


def test_lists_of_unlike_length_get_scores_of_their_own_documents_alone(open_runtime, whole_list):
    async def ask() -> list:
        async with open_runtime([whole_list]) as runtime:
            await runtime.load(whole_list)
            model: Any = open_model(whole_list.bundle.path, whole_list.bundle.manifest)
            encoded, signature = [model.encode(one) for one in PRICES], whole_list.bundle.manifest.signature
            return split(await runtime.infer(whole_list, collate(encoded, signature), timeout_s=60), encoded, signature)

    first, second = asyncio.run(ask())
    np.testing.assert_allclose(first["score"], [-3, -1, 4], atol=1e-5)
    np.testing.assert_allclose(second["score"], [-1, 1], atol=1e-5)


PAIRS = [
    RankRequest(ids=("a", "b", "c"), text="red", texts=("new balance shoes", "", "shoes shoes")),
    RankRequest(ids=("a",), text="new shoes", texts=("red",)),
]


def test_all_runtimes_give_the_same_answers(open_runtime, intent, joint, ranking, cross, whole_list):
    """Labels, entities and order are equal, numbers within 1e-4."""

    async def answers(opened: AbstractAsyncContextManager[Runtime], served: ServedModel, requests: list) -> list:
        async with opened as runtime:
            await runtime.load(served)
            model: Any = open_model(served.bundle.path, served.bundle.manifest)
            encoded = [model.encode(request) for request in requests]
            signature = served.bundle.manifest.signature
            outputs = split(await runtime.infer(served, collate(encoded, signature), timeout_s=60), encoded, signature)
            return model.decode_batch(requests, encoded, outputs)

    asked = (
        (intent, QUERIES),
        (joint, QUERIES),
        (ranking, CANDIDATES),
        (cross, PAIRS),
        (whole_list, PRICES),
    )
    for served, requests in asked:
        expected = asyncio.run(answers(onnx([served]), served, requests))
        found = asyncio.run(answers(open_runtime([served]), served, requests))
        assert [_facts(answer) for answer in found] == [_facts(answer) for answer in expected]
        for answer, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(_numbers(answer), _numbers(other), atol=1e-4)


def _facts(answer: Any) -> list:
    if not isinstance(answer, Reading):
        return [(item.id, item.rank) for item in answer]
    entities = [(entity.type, entity.text, entity.start, entity.end) for entity in answer.entities or ()]
    return [
        answer.intent.label,
        answer.intent.in_scope,
        [other.label for other in answer.intent.alternatives],
        entities,
    ]


def _numbers(answer: Any) -> list[float]:
    if not isinstance(answer, Reading):
        return [item.score for item in answer]
    return [part.confidence for part in (answer.intent, *answer.intent.alternatives, *(answer.entities or ()))]


def test_missing_stays_missing(open_runtime, ranking):
    async def ask():
        async with open_runtime([ranking]) as runtime:
            await runtime.load(ranking)
            features_DF = np.full((3, len(FEATURES)), np.nan, dtype=np.float32)
            features_DF[1] = (100.0, 4.0)
            return await runtime.infer(ranking, {"features": features_DF}, timeout_s=60)

    # score = popularity - price / 100, where missing counts 0
    np.testing.assert_allclose(asyncio.run(ask())["score"], [0.0, 3.0, 0.0], atol=1e-6)


def test_concurrent_callers_each_get_their_own_answer(open_runtime, ranking):
    async def ask():
        async with open_runtime([ranking]) as runtime:
            await runtime.load(ranking)

            async def one(number: int) -> float:
                row = np.array([[0.0, number]], dtype=np.float32)
                return float((await runtime.infer(ranking, {"features": row}, timeout_s=60))["score"][0])

            return await asyncio.gather(*(one(number) for number in range(200)))

    assert asyncio.run(ask()) == pytest.approx(list(range(200)), abs=1e-4)


def test_a_model_that_was_not_loaded_is_unavailable(open_runtime, intent):
    async def ask():
        async with open_runtime([intent]) as runtime:
            encoded = open_model(intent.bundle.path, intent.bundle.manifest).encode("red shoes")
            await runtime.infer(intent, collate([encoded], intent.bundle.manifest.signature), timeout_s=60)

    with pytest.raises(UnavailableError, match="must be loaded"):
        asyncio.run(ask())


def test_a_batch_beyond_its_time_is_given_up(open_runtime, ranking):
    async def ask():
        async with open_runtime([ranking]) as runtime:
            await runtime.load(ranking)
            # Tens of milliseconds of work: the answer must not be there already when a busy machine looks at the time.
            features_DF = np.zeros((2_000_000, len(FEATURES)), dtype=np.float32)
            with pytest.raises(DeadlineError):
                await runtime.infer(ranking, {"features": features_DF}, timeout_s=1e-4)
            answer = await runtime.infer(ranking, {"features": features_DF[:2]}, timeout_s=60)
            assert answer["score"].shape == (2,)

    asyncio.run(ask())


def test_a_batch_that_does_not_fit_the_model_is_refused_and_the_next_one_answered(open_runtime, ranking):
    async def ask():
        async with open_runtime([ranking]) as runtime:
            await runtime.load(ranking)
            with pytest.raises(RankyardError):
                await runtime.infer(ranking, {"features": np.zeros((1, 7), dtype=np.float32)}, timeout_s=60)
            good = Encoded({"features": np.ones((1, len(FEATURES)), dtype=np.float32)})
            answer = await runtime.infer(ranking, collate([good], ranking.bundle.manifest.signature), timeout_s=60)
            assert answer["score"] == pytest.approx([0.99])

    asyncio.run(ask())


def test_loading_twice_is_harmless(open_runtime, intent):
    async def ask():
        async with open_runtime([intent]) as runtime:
            await runtime.load(intent)
            await runtime.load(intent)

    asyncio.run(ask())

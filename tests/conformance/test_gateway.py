"""A gateway answers the same over HTTP wherever its models run."""

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from registry.deployment import Published, publish, resolve
from serving.runtime.protocol import ServedModel
from tests.bundles import PHRASES, tiny_bundle
from tests.serving.gateway.bundles import joint_bundle
from tests.serving.gateway.conftest import gateway

QUERIES = [*(text for texts in PHRASES.values() for text in texts), "", "Red, NEW balance shoes", "Größe 42"]
RANK = [
    {
        "query": {"text": "shoes", "features": {}},
        "candidates": [
            {"id": "a", "features": {"price": 20, "popularity": 1.5}},
            {"id": "b", "features": {"price": None, "popularity": 1.3}},
            {"id": "c", "features": {"price": 20.0, "popularity": 1.5}},
            {"id": "d", "features": {}},
        ],
    },
    {
        "query": {"text": "shoes", "features": {"price": 3}},
        "candidates": {"ids": ["x", "y", "z"], "features": {"popularity": [None, 0.02, 0.5]}},
        "top_k": 2,
        "explain": "values",
    },
    {
        "query": {"text": "", "features": {}},
        "candidates": {"ids": [f"p{n}" for n in range(700)], "features": {"popularity": [n % 7 for n in range(700)]}},
    },
    {"query": {"text": "", "features": {}}, "candidates": []},
    {"query": {"text": "", "features": {}}, "candidates": [{"id": "a", "features": {"weight": 1}}]},
    {"query": {"text": "", "features": {}}, "candidates": [{"id": "a"}, {"id": "a"}]},
]
REQUESTS = [
    *(("/v1/understand", {"query": query}) for query in QUERIES),
    ("/v1/understand", {"queries": [*QUERIES, 5, "x" * 2_000]}),
    ("/v1/understand", {}),
    *(("/v1/rank", body) for body in RANK),
]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Path:
    directory, bundles = tmp_path_factory.mktemp("deployment"), tmp_path_factory.mktemp("bundles")
    publish(directory, "g-intent", {"champion": Published("3", tiny_bundle(bundles, "intent"))})
    publish(directory, "g-joint", {"champion": Published("1", joint_bundle(bundles))})
    publish(directory, "g-ltr", {"champion": Published("2", tiny_bundle(bundles, "ranking"))})
    return directory


@pytest.fixture(scope="module")
def embedded(deployment) -> Iterator[httpx.Client]:
    with gateway(deployment) as client:
        yield client


@pytest.fixture(scope="module")
def on_triton(deployment, triton_server) -> Iterator[httpx.Client]:
    triton_server.serve(
        [ServedModel(*resolve(deployment, f"{name}@champion")) for name in ("g-intent", "g-joint", "g-ltr")]
    )
    with gateway(deployment, {"runtime": {"kind": "triton", "triton_url": triton_server.running.grpc}}) as client:
        yield client


@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=lambda part: str(part)[:40])
def test_the_same_request_gets_the_same_answer_from_both_runtimes(embedded, on_triton, path, body):
    expected, found = embedded.post(path, json=body), on_triton.post(path, json=body)
    assert found.status_code == expected.status_code
    assert_same(found.json(), expected.json())


def assert_same(found: object, expected: object, path: str = "") -> None:
    """Everything is equal, numbers to 1e-4; but not how long a phase took."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), path
        for key in expected:
            if key != "ms":
                assert_same(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for index, item in enumerate(expected):
            assert_same(found[index], item, f"{path}[{index}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, abs_tol=1e-4), path
    else:
        assert found == expected, path

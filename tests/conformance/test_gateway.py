"""A gateway answers the same over HTTP wherever its models run."""

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tritonclient.http as triton

from registry.deployment import Published, publish, resolve
from serving.runtime.protocol import ServedModel
from tests.bundles import PHRASES, tiny_bundle
from tests.serving.gateway.bundles import joint_bundle
from tests.serving.gateway.conftest import gateway
from tests.tree_bundle import NAMES, grow, rows, tree_bundle

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

LINEAR, TREES = {"models": {"ranking": "g-ltr@champion"}}, {"models": {"ranking": "g-trees@champion"}}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Path:
    directory, bundles = tmp_path_factory.mktemp("deployment"), tmp_path_factory.mktemp("bundles")
    publish(directory, "g-intent", {"champion": Published("3", tiny_bundle(bundles, "intent"))})
    publish(directory, "g-joint", {"champion": Published("1", joint_bundle(bundles))})
    publish(directory, "g-ltr", {"champion": Published("2", tiny_bundle(bundles, "ranking"))})
    publish(directory, "g-trees", {"champion": Published("1", tree_bundle(bundles, grow(15)))})
    return directory


@pytest.fixture(scope="module")
def embedded(deployment) -> Iterator[httpx.Client]:
    with gateway(deployment, LINEAR) as client:
        yield client


@pytest.fixture(scope="module")
def on_triton(deployment, triton_server) -> Iterator[httpx.Client]:
    triton_server.serve(
        [ServedModel(*resolve(deployment, f"{name}@champion")) for name in ("g-intent", "g-joint", "g-ltr", "g-trees")]
    )
    with gateway(deployment, LINEAR | triton_runtime(triton_server)) as client:
        yield client


def triton_runtime(triton_server) -> dict:
    """A gateway that asks Triton alone, as long as it answers: a busy machine must not hedge, and call it gone."""
    return {"runtime": {"kind": "triton", "triton_url": triton_server.running.grpc, "hedge_share": 0}}


@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=lambda part: str(part)[:40])
def test_the_same_request_gets_the_same_answer_from_both_runtimes(embedded, on_triton, path, body):
    expected, found = embedded.post(path, json=body), on_triton.post(path, json=body)
    assert found.status_code == expected.status_code
    assert_same(found.json(), expected.json())


def test_every_form_of_a_ranking_gets_the_same_scores_from_both_runtimes(deployment, on_triton, triton_server):
    """Trees, to the last bit, by whatever scorer the embedded runtime has chosen; and what each feature added."""
    assert on_triton  # the server has loaded the models
    matrix = rows(130, 3)
    ids = [f"p{number}" for number in range(len(matrix))]
    values = [[None if math.isnan(value) else value for value in column] for column in matrix.T.astype(float).tolist()]
    by_column = {"candidates": {"ids": ids, "features": dict(zip(NAMES, values, strict=True))}}
    features = [dict(zip(NAMES, row, strict=True)) for row in zip(*values, strict=True)]
    by_row = {"candidates": [{"id": i, "features": row} for i, row in zip(ids, features, strict=True)]}
    tensor = triton.InferInput("features", list(matrix.shape), "FP32")
    tensor.set_data_from_numpy(matrix)
    answers = []
    for config in (TREES, TREES | triton_runtime(triton_server)):
        with gateway(deployment, config) as client:
            found = [
                {one["id"]: one["score"] for one in client.post("/v1/rank", json=body).json()["ranking"]}
                for body in (by_row, by_column)
            ]
            with triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as other:
                scores = other.infer("g-trees", [tensor]).as_numpy("score").ravel().astype(float).tolist()
            found.append(dict(zip(ids, scores, strict=True)))
            explained = client.post("/v1/rank", json=by_column | {"explain": True, "top_k": 3}).json()
            answers.append((found, explained["contributions"], explained["explanations"]))
    (by_form, *_), _ = answers
    assert by_form[0] == by_form[1] == by_form[2]
    assert answers[0] == answers[1]


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

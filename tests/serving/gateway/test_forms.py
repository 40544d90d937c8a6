"""One request in every form: by row, by column, by Arrow, by the Open Inference Protocol, gets the same scores."""

import asyncio
import json

import httpx
import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.candidates import Reader
from serving.gateway.predict import predict
from tests.serving.gateway.forms import (
    ARROW,
    LIMITS,
    as_tensors,
    by_arrow,
    by_column,
    by_row,
    matrix_of,
    numbers,
    read_tensors,
    refused,
    tables,
)
from tests.tree_bundle import NAMES


@settings(max_examples=150, deadline=None)
@given(table=tables())
def test_every_form_of_a_request_gives_the_model_the_same_bytes(tree_model, tree_served, table):
    reader = Reader(LIMITS, tree_model.sent)
    general = Reader(LIMITS, ["a name that no struct \\ can have"])
    expected = matrix_of(tree_model, reader.read(by_row(table)))
    assert matrix_of(tree_model, general.read(by_row(table))) == expected
    assert matrix_of(tree_model, reader.read(by_column(table))) == expected
    assert matrix_of(tree_model, reader.read(by_arrow(table), is_arrow=True)) == expected
    if len(table) > 1:
        for is_binary, dtype in ((True, "FP32"), (True, "FP64"), (False, "FP64")):
            body, length = as_tensors(table, is_binary=is_binary, dtype=dtype)
            (read,) = read_tensors(body, length, tree_served, tree_model)
            assert np.asarray(read.arrays["features"]).tobytes() == expected


@settings(max_examples=25, deadline=None)
@given(table=tables())
def test_every_form_gets_the_same_scores_over_http_which_are_xgboosts(tree_client, booster, table):
    matrix = np.full((len(table["ids"]), len(NAMES)), np.nan, np.float32)
    for place, name in enumerate(NAMES):
        if name in table:
            matrix[:, place] = np.array(table[name], dtype=np.float32)
    expected = dict(zip(table["ids"], booster.inplace_predict(matrix).astype(np.float64).tolist(), strict=True))
    for body, kind in ((by_row(table), None), (by_column(table), None), (by_arrow(table), ARROW)):
        answer = tree_client.post("/v1/rank", content=body, headers={"content-type": kind} if kind else {})
        assert answer.status_code == 200, answer.text
        assert {item["id"]: item["score"] for item in answer.json()["ranking"]} == expected
    tensor = triton.InferInput("features", list(matrix.shape), "FP32")
    tensor.set_data_from_numpy(matrix)
    with triton.InferenceServerClient(f"{tree_client.base_url.host}:{tree_client.base_url.port}") as other:
        for version in ("", "4"):
            scores = other.infer("trees", [tensor], version).as_numpy("score")
            assert scores.shape == (len(matrix), 1)
            assert scores.ravel().astype(np.float64).tolist() == list(expected.values())


@settings(max_examples=60, deadline=None)
@given(
    query=st.dictionaries(st.sampled_from(NAMES), numbers, max_size=3),
    table=tables(),
    dropped=st.sets(st.tuples(st.integers(0, 5), st.sampled_from(NAMES))),
)
def test_a_querys_value_holds_where_no_candidate_has_the_feature_in_both_ways_of_reading(
    tree_model, query, table, dropped
):
    body = json.loads(by_row(table, query={"features": query}))
    for row, name in dropped:
        if row < len(body["candidates"]):
            body["candidates"][row]["features"].pop(name, None)
    sent = json.dumps(body).encode()
    quick, general = Reader(LIMITS, tree_model.sent), Reader(LIMITS, ["no \\ struct"])
    assert matrix_of(tree_model, quick.read(sent)) == matrix_of(tree_model, general.read(sent))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (by_row({"ids": ["a"], "price": [1e39]}), "candidates.features.price"),
        (by_column({"ids": ["a"], "price": [1e39]}), "candidates.features.price"),
    ],
)
def test_a_number_beyond_float32_is_named_in_rows_and_columns(tree_model, body, says):
    code, field, message = refused(lambda: Reader(LIMITS, tree_model.sent).read(body))
    assert (code, field) == ("invalid_input", says)
    assert "must fit into float32 (up to 3.4e38), value 0 is 1e+39" in message


def test_no_candidates_are_no_error_in_any_form(tree_client):
    assert (
        tree_client.post("/v1/rank", content=by_arrow({"ids": []}), headers={"content-type": ARROW}).json()["ranking"]
        == []
    )
    header = {"inputs": [{"name": "features", "shape": [0, 5], "datatype": "FP32", "data": []}]}
    assert tree_client.post("/v2/models/trees/infer", json=header).json()["outputs"][0]["shape"] == [0, 1]


def explained(tree_client: httpx.Client, **rest) -> dict:
    table = {"ids": ["a", "b", "c"], "price": [1, None, 3], "margin": [0.5, -1, 2]}
    answer = tree_client.post("/v1/rank", content=by_column(table, **rest))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_explain_says_what_each_feature_added(tree_client):
    answer = explained(tree_client, explain=True, top_k=2)
    contributions = answer["contributions"]
    assert list(contributions["candidates"]) == [item["id"] for item in answer["ranking"]]
    for item in answer["ranking"]:
        parts = contributions["candidates"][item["id"]]
        assert tuple(parts) == NAMES
        assert contributions["base"] + sum(parts.values()) == pytest.approx(item["score"], abs=1e-5)
        assert set(answer["explanations"][item["id"]]) == set(NAMES)
    assert set(explained(tree_client, explain="values")) == {"ranking", "models", "phases", "degraded", "explanations"}
    assert "explanations" not in explained(tree_client)


def test_explain_takes_no_other_word(tree_client):
    answer = tree_client.post("/v1/rank", json={"candidates": [{"id": "a"}], "explain": "why"})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "explain"


def test_many_callers_in_every_form_at_once_each_get_their_own_scores(tree_client, booster):
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
        async with httpx.AsyncClient(base_url=tree_client.base_url, timeout=60) as http:
            await asyncio.gather(*[ask(http, number) for number in range(150)])

    asyncio.run(run())


def test_predict_takes_every_line_by_row_or_by_column(tree_served, booster):
    table = {"ids": ["a", "b"], "price": [1, 2], "age": [None, 3]}
    matrix = np.full((2, 5), np.nan, np.float32)
    matrix[:, 0], matrix[1, 4] = [1, 2], 3
    rows, columns = predict(tree_served, [by_row(table).decode(), by_column(table, explain=True).decode()])
    expected = booster.inplace_predict(matrix).astype(np.float64).tolist()
    for answer in (rows, columns):
        assert {item["id"]: item["score"] for item in answer["ranking"]} == dict(zip("ab", expected, strict=True))
    assert msgspec.json.encode(columns["contributions"])

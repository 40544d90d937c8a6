"""The HTTP contract, asked of a real process on a loopback port."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from models.answers import Alternative, Intent, Phase, Ranked, Ranking, Understanding, to_json
from serving.gateway import wire
from tests.bundles import PHRASES


def rank(client, **body):
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def order(answer) -> list[str]:
    return [item["id"] for item in answer["ranking"]]


def rows(**prices) -> list[dict]:
    return [{"id": name, "features": {"price": price}} for name, price in prices.items()]


def test_a_query_is_answered_with_its_intent_and_who_said_so(client):
    answer = client.post("/v1/understand", json={"query": "where is my order"})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"query", "intent", "entities", "models"}
    assert body["query"] == "where is my order"
    assert body["intent"]["label"] == "order_status"
    assert body["intent"]["in_scope"] is True
    confidences = [body["intent"]["confidence"], *(other["confidence"] for other in body["intent"]["alternatives"])]
    assert sum(confidences) == pytest.approx(1)
    assert confidences == sorted(confidences, reverse=True)
    assert body["entities"] == []
    assert body["models"] == {"intent": "shop-query/3"}


def test_out_of_scope_is_said(client):
    body = client.post("/v1/understand", json={"query": "tell me a joke"}).json()
    assert (body["intent"]["label"], body["intent"]["in_scope"]) == ("oos", False)


def test_several_queries_are_answered_in_order_and_a_bad_one_fails_alone(client):
    queries = ["red nike shoes", 5, "track my parcel", "x" * 1_001, " \u3000"]
    answer = client.post("/v1/understand", json={"queries": queries})
    assert answer.status_code == 200
    first, second, third, fourth, fifth = answer.json()["results"]
    assert (first["intent"]["label"], third["intent"]["label"]) == ("product_search", "order_status")
    assert fifth["error"]["message"].startswith("a query must have more than white space, got ")
    assert second == {
        "error": {
            "code": "invalid_input",
            "message": "a query must be a string, got 5; send text",
            "field": "queries[1]",
        }
    }
    assert (fourth["error"]["code"], fourth["error"]["field"]) == ("too_large", "queries[3]")


def test_many_callers_at_once_each_get_their_own_answer(client):
    expected = {phrase: label for label, phrases in PHRASES.items() for phrase in phrases}

    def ask(number: int) -> bool:
        phrase = list(expected)[number % len(expected)]
        body = client.post("/v1/understand", json={"query": phrase}).json()
        return (body["query"], body["intent"]["label"]) == (phrase, expected[phrase])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(200)))


def test_candidates_are_ordered_by_score(client):
    # score = popularity - price / 100
    candidates = [
        {"id": "a", "features": {"price": 100.0, "popularity": 3.0}},
        {"id": "b", "features": {"price": 200.0, "popularity": 5.0}},
    ]
    answer = rank(client, query={"text": "red shoes"}, candidates=candidates)
    assert answer["ranking"] == [
        {"id": "b", "score": pytest.approx(3.0), "rank": 1},
        {"id": "a", "score": pytest.approx(2.0), "rank": 2},
    ]
    assert answer["models"] == ["shop-ltr/2"]
    assert answer["degraded"] is False
    (phase,) = answer["phases"]
    assert (phase["model"], phase["in"], phase["out"]) == ("shop-ltr/2", 2, 2)
    assert phase["ms"] > 0
    assert set(answer) == {"ranking", "models", "phases", "degraded"}


def test_by_row_and_by_column_are_the_same(client):
    by_row = rank(client, candidates=[*rows(a=3, b=1, c=None), {"id": "d", "features": {"popularity": 1.5}}])
    columns = {"price": [3, 1, None, None], "popularity": [None, None, None, 1.5]}
    by_column = rank(client, candidates={"ids": ["a", "b", "c", "d"], "features": columns})
    assert by_row["ranking"] == by_column["ranking"]


def test_null_nan_and_absent_are_all_missing(client):
    body = b'{"candidates":[{"id":"a","features":{"price":null}},{"id":"b","features":{"price":NaN}},{"id":"c"}]}'
    answer = client.post("/v1/rank", content=body)
    assert [item["score"] for item in answer.json()["ranking"]] == [0, 0, 0]


def test_equal_scores_keep_the_order_they_came_in(client):
    assert order(rank(client, candidates=rows(c=1, a=1, d=0, b=1))) == ["d", "c", "a", "b"]


def test_a_feature_of_the_query_holds_for_every_candidate(client):
    answer = rank(client, query={"features": {"popularity": 2.0}}, candidates=rows(a=100, b=0))
    assert [item["score"] for item in answer["ranking"]] == pytest.approx([2.0, 1.0])


def test_top_k_cuts_the_answer(client):
    assert order(rank(client, candidates=rows(a=3, b=2, c=1), top_k=2)) == ["c", "b"]
    assert order(rank(client, candidates=rows(a=3, b=2), top_k=99)) == ["b", "a"]


def test_explain_says_what_the_model_read(client):
    candidates = [*rows(a=3), {"id": "b", "features": {"popularity": 0.5}}]
    answer = rank(client, candidates=candidates, explain="values", top_k=1)
    assert answer["explanations"] == {"b": {"price": None, "popularity": 0.5}}


def test_no_candidates_are_no_error(client):
    answer = rank(client, candidates=[])
    assert (answer["ranking"], answer["degraded"]) == ([], False)


U, R = "/v1/understand", "/v1/rank"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "field", "says"),
    [
        (U, b"{", 400, "malformed_json", None, "must be JSON"),
        (U, b"", 400, "malformed_json", None, "must be JSON"),
        (U, b"\xff\xfe", 400, "malformed_json", None, "must be JSON"),
        (U, b'{"query": "\xff"}', 400, "malformed_json", None, "UTF-8"),
        (U, b'{"query": "\\ud83dx xxxxx"}', 400, "malformed_json", None, "must be JSON"),
        (U, b'{"queries": ' + b"[" * 50_000, 400, "malformed_json", None, "must be JSON"),
        (U, b"[1]", 422, "invalid_input", None, "the body must be an object, got [1]"),
        (U, b"{}", 422, "invalid_input", "query", "either query or queries, got neither"),
        (U, b'{"query": ""}', 422, "invalid_input", "query", "more than white space"),
        (U, b'{"query": "a", "queries": []}', 422, "invalid_input", "query", "got both"),
        (U, b'{"query": 5}', 422, "invalid_input", "query", "must be a string or null, got 5"),
        (U, b'{"qery": "a"}', 422, "invalid_input", "qery", "is not a field"),
        (U, b'{"queries": "a"}', 422, "invalid_input", "queries", 'must be an array or null, got "a"'),
        (U, json.dumps({"queries": ["a"] * 21}).encode(), 413, "too_large", "queries", "at most 20 queries, got 21"),
        (U, json.dumps({"query": "a" * 1_001}).encode(), 413, "too_large", "query", "1000 characters, got 1001"),
        (R, b"{}", 422, "invalid_input", "candidates", "must be given"),
        (R, b'{"candidates": 5}', 422, "invalid_input", "candidates", "got 5"),
        (R, b'{"candidates": [{"id": 5}]}', 422, "invalid_input", "candidates[0].id", "must be a string, got 5"),
        (R, b'{"candidates": [{"price": 5}]}', 422, "invalid_input", "candidates[0].price", "is not a field"),
        (R, b'{"candidates": [{}]}', 422, "invalid_input", "candidates[0].id", "must be given"),
        (R, b'{"candidates": [], "top_k": 0}', 422, "invalid_input", "top_k", "must be >= 1, got 0"),
        (
            R,
            b'{"candidates": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}',
            422,
            "invalid_input",
            "candidates[2].id",
            "got 'a' twice",
        ),
        (R, b'{"candidates": {"ids": ["a", "a"]}}', 422, "invalid_input", "candidates.ids[1]", "got 'a' twice"),
        (
            R,
            b'{"candidates": [{"id": "a", "features": {"price": "x"}}]}',
            422,
            "invalid_input",
            "candidates[0].features.price",
            'must be a number or null, got "x"',
        ),
        (
            R,
            b'{"candidates": [{"id": "a"}, {"id": "b", "features": {"colour": 1}}]}',
            422,
            "invalid_input",
            "candidates[1].features.colour",
            "must be one of the model's (price, popularity), got 'colour'",
        ),
        (
            R,
            b'{"candidates": {"ids": ["a"], "features": {"colour": [1]}}}',
            422,
            "invalid_input",
            "candidates.features.colour",
            "must be one of the model's",
        ),
        (
            R,
            b'{"query": {"features": {"hour": 1}}, "candidates": [{"id": "a"}]}',
            422,
            "invalid_input",
            "query.features.hour",
            "must be one of the model's",
        ),
        (
            R,
            b'{"candidates": {"ids": ["a"], "features": {"price": [1, 2]}}}',
            422,
            "invalid_input",
            "candidates.features.price",
            "one value a candidate, got 2 for 1",
        ),
        (R, b'{"candidates": {"ids": ["a"], "texts": []}}', 422, "invalid_input", "candidates.texts", "got 0 for 1"),
        (
            R,
            b'{"candidates": {"ids": ["a"], "features": {"price": [1e300]}}}',
            422,
            "invalid_input",
            "candidates.features.price",
            "must fit into float32",
        ),
        (
            R,
            b'{"candidates": {"ids": ["a"], "features": {"popularity": [1], "price": [1e999]}}}',
            422,
            "invalid_input",
            "candidates.features.price[0]",
            "a number up to 1.8e308, got a larger one",
        ),
        (
            R,
            b'{"candidates": [{"id": "a", "features": {"popularity": 1, "price": -' + b"9" * 400 + b"}}]}",
            422,
            "invalid_input",
            "candidates[0].features.price",
            "a number up to 1.8e308, got a larger one",
        ),
        (
            R,
            b'{"candidates": [{"id": "a"}], "explain": "x"}',
            422,
            "invalid_input",
            "explain",
            'explain must be true, false or "values", got "x"',
        ),
        (
            R,
            b'{"candidates": [{"id": "a"}], "explain": 1}',
            422,
            "invalid_input",
            "explain",
            'explain must be true, false or "values", got 1',
        ),
        (
            R,
            b'{"candidates": {"ids": [], "features": {"colour": []}}}',
            422,
            "invalid_input",
            "candidates.features.colour",
            "must be one of the model's",
        ),
        (
            R,
            b'{"query": {"features": {"hour": 1}}, "candidates": []}',
            422,
            "invalid_input",
            "query.features.hour",
            "must be one of the model's",
        ),
        (R, b'{"candidates": [{"id": "a", "features": {"price": Infinity}}]}', 400, "malformed_json", None, "JSON"),
        (
            R,
            json.dumps({"candidates": {"ids": [str(n) for n in range(51)]}}).encode(),
            413,
            "too_large",
            "candidates",
            "at most 50 candidates, got 51",
        ),
        (
            R,
            json.dumps({"candidates": [{"id": "a", "text": "x" * 5_001}]}).encode(),
            413,
            "too_large",
            "candidates",
            "at most 5000 characters, got 5001",
        ),
    ],
)
def test_a_wrong_request_is_told_the_rule_the_value_and_where(client, path, body, status, code, field, says):
    answer = client.post(path, content=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    assert (error["code"], error["field"]) == (code, field)
    assert says in error["message"]
    assert "Traceback" not in answer.text


def test_an_unknown_path_and_a_wrong_method_have_the_same_shape(client):
    unknown, wrong = client.get("/v1/nothing"), client.get("/v1/rank")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )
    assert client.post("/healthz").status_code == 405


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_body_beyond_the_limit_is_refused_whether_or_not_it_says_its_length(client, is_streamed):
    pieces = [b"x" * 50_000] * 20
    answer = client.post("/v1/understand", content=iter(pieces) if is_streamed else b"".join(pieces))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "at most 100000 bytes" in answer.json()["error"]["message"]
    assert client.get("/healthz").status_code == 200


def test_a_deadline_that_passes_is_answered_504(client):
    answer = client.post("/v1/understand", json={"query": "asked but once"}, headers={"x-deadline-ms": "0.01"})
    assert (answer.status_code, answer.json()["error"]["code"]) in {(504, "deadline_exceeded"), (408, "body_timeout")}


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", "30001"])
def test_a_wrong_deadline_is_refused(client, value):
    answer = client.post("/v1/understand", json={"query": "red shoes"}, headers={"x-deadline-ms": value})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "x-deadline-ms")


def test_a_wrong_priority_is_refused(client):
    answer = client.post("/v1/understand", json={"query": "red shoes"}, headers={"x-priority": "high"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "x-priority")


def test_a_body_that_never_comes_ends_at_its_deadline(client):
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as half:
        half.sendall(b"POST /v1/understand HTTP/1.1\r\nhost: a\r\nx-deadline-ms: 100\r\ncontent-length: 50\r\n\r\n{")
        assert half.recv(1_000).startswith(b"HTTP/1.1 408")


def test_callers_that_hang_up_hurt_nobody(client):
    body = json.dumps({"queries": ["red shoes"] * 20}).encode()
    head = f"POST /v1/understand HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    for cut in (len(head) - 3, len(head) + 10, len(head) + len(body)):
        for _ in range(5):
            with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as caller:
                caller.sendall((head + body)[:cut])
    assert client.post("/v1/understand", json={"query": "red shoes"}).status_code == 200


def test_pipelined_requests_are_answered_in_order(client):
    requests = b""
    for phrase in ("track my parcel", "tell me a joke"):
        body = json.dumps({"query": phrase}).encode()
        requests += b"POST /v1/understand HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as caller:
        caller.sendall(requests)
        received = b""
        give_up_at = time.monotonic() + 60
        while received.count(b'"models"') < 2 and time.monotonic() < give_up_at:
            received += caller.recv(10_000)
    assert received.index(b"track my parcel") < received.index(b"tell me a joke")


def test_malformed_http_is_refused_and_the_next_caller_served(client):
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as caller:
        caller.sendall(b"NONSENSE\r\n\r\n")
        assert caller.recv(1_000).startswith(b"HTTP/1.1 400")
    assert client.get("/healthz").status_code == 200


def test_health_readiness_and_models(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.head("/readyz").status_code == 200
    models = client.get("/v1/models").json()["models"]
    assert [(model["ref"], model["family"], model["variant"], model["answers"]) for model in models] == [
        ("shop-query/3", "intent", "float32", ["intent"]),
        ("shop-ltr/2", "ranking", "float32", ["ranking"]),
    ]
    assert all(len(model["digest"]) == 64 for model in models)


def test_metrics_count_requests_by_route_and_status_with_bounded_labels(client):
    def count(line: str) -> float:
        text = client.get("/metrics").text
        return next((float(found.rsplit(" ", 1)[1]) for found in text.splitlines() if found.startswith(line)), 0.0)

    line = 'rankyard_requests_total{route="/v1/understand",status="200"}'
    before = count(line)
    client.post("/v1/understand", json={"query": "red shoes"})
    assert count(line) == before + 1
    for number in range(3):
        client.get(f"/made/up/{number}")
    assert count('rankyard_requests_total{route="other",status="404"}') >= 3
    text = client.get("/metrics").text
    assert "/made/up" not in text
    for series in (
        "request_seconds",
        "queue_length",
        "batch_size",
        "batch_padding_ratio",
        "model_seconds",
        "rejected",
        "dropped",
        "degraded",
    ):
        assert f"# TYPE rankyard_{series}" in text


def test_openapi_describes_every_route_and_all_its_references_resolve(client):
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) >= {"/v1/understand", "/v1/rank", "/v1/models", "/healthz", "/readyz", "/metrics"}
    schemas = document["components"]["schemas"]

    def check(part):
        if isinstance(part, dict):
            if "$ref" in part:
                assert part["$ref"].removeprefix("#/components/schemas/") in schemas
            for inner in part.values():
                check(inner)
        elif isinstance(part, list):
            for inner in part:
                check(inner)

    check(document)
    assert set(schemas["PhaseAnswer"]["properties"]) == {"model", "in", "out", "ms", "scored"}
    assert set(schemas["Understanding"]["properties"]) == {"query", "intent", "entities", "models"}


def test_the_examples_of_the_documentation_work(client):
    for path, wanted in (("/v1/understand", 200), ("/v1/rank", 422)):
        content = client.get("/openapi.json").json()["paths"][path]["post"]["requestBody"]["content"]
        for example in content["application/json"]["examples"].values():
            # The tiny ranker knows neither `hour` nor `stock`: it must say so, and nothing else.
            answer = client.post(path, json=example["value"])
            assert answer.status_code == wanted, answer.text
            assert wanted == 200 or "must be one of the model's" in answer.text


def test_the_documentation_says_how_binary_forms_and_explanations_are_asked(client):
    paths = client.get("/openapi.json").json()["paths"]
    rank, infer = paths["/v1/rank"]["post"], paths["/v2/models/{name}/infer"]["post"]
    assert set(rank["requestBody"]["content"]) == {"application/json", "application/vnd.apache.arrow.stream"}
    assert "exact SHAP values" in rank["description"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert "415" in rank["responses"]


def test_contributions_of_a_model_without_trees_are_refused(client):
    answer = client.post("/v1/rank", json={"candidates": [{"id": "a"}], "explain": True})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "explain")
    assert "need a model of trees, shop-ltr/2 is none" in answer.json()["error"]["message"]


def test_the_documentation_needs_no_other_machine(client):
    page = client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "//" not in page.text.replace("<!doctype", "")
    for asset, kind in (("swagger-ui.css", "text/css"), ("swagger-ui-bundle.js", "text/javascript")):
        assert f"/docs/{asset}" in page.text
        found = client.get(f"/docs/{asset}")
        assert (found.status_code, found.headers["content-type"]) == (200, kind)
        assert len(found.content) > 10_000


@pytest.mark.parametrize(
    "ranking",
    [
        Ranking((Ranked("a", 1.5, 1),), ("m/1",), (Phase("m/1", 2, 1, 0.25, 2),)),
        Ranking((), ("m/1",), (), degraded=True, reason="why", explanations={"a": {"f": None, "g": 2.0}}),
    ],
)
def test_rankings_are_written_as_the_contract_says(ranking):
    assert msgspec.json.decode(wire.encode(wire.rank_answer(ranking))) == json.loads(json.dumps(to_json(ranking)))


def test_understandings_are_written_as_the_contract_says():
    answer = Understanding("q", Intent("a", 0.5, True, (Alternative("b", 0.25),)), (), {"intent": "m/1"})
    assert msgspec.json.decode(wire.encode(answer)) == json.loads(json.dumps(to_json(answer)))

"""The client against a real gateway, and against servers that fail on purpose."""

import asyncio
import contextlib
import inspect
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import rankyard
from models.answers import Ranking, Understanding, to_json
from models.errors import DeadlineError, InputError, NotFoundError, OverloadedError, RankyardError, UnavailableError
from registry.deployment import Published, publish
from serving.calls import Calls
from serving.client import AsyncClient, Client
from serving.exchange import Retries
from serving.gateway import errors, wire
from tests.serving.gateway.conftest import gateway
from tests.tree_bundle import grow, tree_bundle

ROOT = Path(__file__).parents[2]
PATIENT_MS = 30_000
ANSWER = {"query": "a", "intent": None, "entities": [], "models": {}}
OVERLOADED = {"error": {"code": "overloaded", "message": "as many do", "field": None}}
UNREADY = {"error": {"code": "unavailable", "message": "still starting", "field": None}}
COLUMNS = wire.Columns(ids=["a", "b"], features={"popularity": [1.0, 2.0], "price": [None, 20.0]})


class Scripted:
    """A server that plays one part of its script a request: (status, headers, body), `drop` or `hang`."""

    def __init__(self, *script, tls: ssl.SSLContext | None = None) -> None:
        self.script = list(script)
        self._tls = tls
        self.requests: list[tuple[float, bytes]] = []
        self.n_connections = 0
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.n_connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
        with connection, contextlib.suppress(OSError):
            while request := _request(connection):
                self.requests.append((time.monotonic(), request))
                part = self.script.pop(0)
                if part == "drop":
                    return
                if part == "hang":
                    self._is_over.wait()
                    return
                if part == "drip":
                    connection.sendall(b"HTTP/1.1 200 X\r\ncontent-length: 1000\r\n\r\n")
                    while not self._is_over.wait(0.02):
                        connection.sendall(b" ")
                    return
                status, headers, body = part
                content = json.dumps(body).encode() if isinstance(body, dict) else body
                head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                connection.sendall(
                    f"HTTP/1.1 {status} X\r\n{head}content-length: {len(content)}\r\n\r\n".encode() + content
                )

    def close(self) -> None:
        self._is_over.set()
        self._listener.close()


def _request(connection: socket.socket) -> bytes:
    """One whole request; its head and its body may come apart."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
        head, end, body = received.partition(b"\r\n\r\n")
        if end and len(body) == int(re.search(rb"\ncontent-length: (\d+)", head.lower())[1]):
            return received
    return b""


@contextlib.contextmanager
def scripted(*script, tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    server = Scripted(*script, tls=tls)
    try:
        yield server
    finally:
        server.close()


def patient(url: str, **settings) -> Client:
    """A client whose calls end by what is tested, not by a busy machine."""
    return Client(url, deadline_ms=PATIENT_MS, **settings)


def deadline_ms(request: bytes) -> float:
    lines = request.lower().split(b"\r\n")
    return float(next(line for line in lines if line.startswith(b"x-deadline-ms")).split(b":")[1])


def test_answers_of_a_gateway_are_typed(url):
    with patient(url) as client:
        understood = client.understand("where is my order")
        assert isinstance(understood, Understanding)
        assert understood.intent.label == "order_status"
        assert understood.models == {"intent": "shop-query/3"}
        several = client.understand_several(["red nike shoes", "x" * 2_000])
        assert several[0].intent.label == "product_search"
        assert (type(several[1]).__name__, several[1].field) == ("TooLargeError", "queries[1]")
        ranking = client.rank(wire.RankRequest(COLUMNS, explain="values"))
        assert isinstance(ranking, Ranking)
        assert [one.id for one in ranking.ranking] == ["b", "a"]
        assert ranking.phases[0].n_in == 2
        assert set(ranking.explanations["a"]) == {"price", "popularity"}
        assert {model.family for model in client.models()} == {"intent", "ranking"}
        assert client.is_ready()


def test_what_each_feature_added_comes_through_the_client_too(tmp_path):
    directory = tmp_path / "deployment"
    publish(directory, "trees", {"champion": Published("1", tree_bundle(tmp_path / "bundles", grow()))})
    with (
        gateway(directory, {"deadline_ms": PATIENT_MS}) as opened,
        patient(str(opened.base_url).rstrip("/")) as client,
    ):
        request = wire.RankRequest([wire.Candidate("a"), wire.Candidate("b")], explain=True)
        ranking = client.rank(request)
        told = to_json(ranking)
        expected = opened.post("/v1/rank", content=wire.encode(request)).json()
        for one in (told, expected):
            del one["phases"]
        assert json.loads(json.dumps(told)) == expected
        assert set(ranking.contributions.candidates) == {"a", "b"}


def test_the_awaiting_client_answers_as_the_waiting_one(url):
    async def ask():
        async with AsyncClient(url, deadline_ms=PATIENT_MS) as client:
            return await asyncio.gather(
                client.understand("where is my order"),
                client.understand_several(["red nike shoes"]),
                client.rank(wire.RankRequest(COLUMNS)),
                client.models(),
                client.is_ready(),
            )

    understood, several, ranking, models, is_ready = asyncio.run(ask())
    with patient(url) as client:
        assert understood == client.understand("where is my order")
        assert several == client.understand_several(["red nike shoes"])
        assert ranking.ranking == client.rank(wire.RankRequest(COLUMNS)).ranking
        assert (models, is_ready) == (client.models(), True)


def test_a_gateway_s_refusal_is_raised_as_itself_and_not_tried_again(url):
    with patient(url) as client, pytest.raises(InputError, match="weight") as raised:
        client.rank(wire.RankRequest([wire.Candidate("a", features={"weight": 1.0})]))
    assert raised.value.field == "candidates[0].features.weight"
    told = {"error": {"code": "not_found", "message": "no such path", "field": None}}
    with scripted((404, {}, told)) as server, patient(server.url) as client, pytest.raises(NotFoundError):
        client.understand("a")
    assert len(server.requests) == 1


def test_one_connection_serves_call_after_call():
    with scripted(*[(200, {}, ANSWER)] * 5) as server, patient(server.url) as client:
        for _ in range(5):
            client.understand("a")
        assert server.n_connections == 1


def test_a_refusal_with_retry_after_is_tried_again_no_sooner():
    script = [(429, {"Retry-After": "1"}, OVERLOADED), (200, {}, ANSWER)]
    with scripted(*script) as server, patient(server.url) as client:
        assert client.understand("a").query == "a"
        (first, _), (second, _) = server.requests
        assert second - first >= 1.0


def test_every_try_tells_the_gateway_what_is_left_of_the_deadline():
    script = [(503, {"Retry-After": "1"}, UNREADY), (200, {}, ANSWER)]
    with scripted(*script) as server, patient(server.url) as client:
        client.understand("a", deadline_ms=30_000)
        first, second = (deadline_ms(request) for _, request in server.requests)
        assert 20_000 < first <= 30_000
        assert 10_000 < second <= first - 1_000


def test_no_retry_begins_that_could_not_end_before_the_deadline():
    script = (429, {"Retry-After": "60"}, OVERLOADED)
    with scripted(script) as server, patient(server.url) as client:
        begin = time.monotonic()
        with pytest.raises(OverloadedError) as raised:
            client.understand("a")
        assert time.monotonic() - begin < 30
        assert raised.value.retry_after_s == 60
        assert len(server.requests) == 1


def test_a_dropped_connection_is_tried_again():
    with scripted("drop", (200, {}, ANSWER)) as server, patient(server.url) as client:
        assert client.understand("a").query == "a"

    async def ask(address: str) -> Understanding:
        async with AsyncClient(address, deadline_ms=PATIENT_MS) as client:
            return await client.understand("a")

    with scripted("drop", (200, {}, ANSWER)) as server:
        assert asyncio.run(ask(server.url)).query == "a"


def test_retries_end_after_their_number():
    with scripted(*["drop"] * 3) as server, patient(server.url) as client, pytest.raises(UnavailableError):
        client.understand("a")
    assert len(server.requests) == 3


def test_retries_of_all_calls_stay_within_their_budget():
    retries = Retries(share=0.1, reserve=3, first_wait_ms=0.1)
    with scripted(*["drop"] * 100) as server, patient(server.url, retries=retries) as client:
        for _ in range(20):
            with pytest.raises(UnavailableError):
                client.understand("a")
        # The reserve, and a tenth of 20 calls; the bucket of 3 was full at the first call.
        assert 20 + 3 + 1 <= len(server.requests) <= 20 + 3 + 2


@pytest.mark.parametrize("fault", ["hang", "drip"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_silent_gateway_costs_no_more_than_the_deadline(is_async, fault):
    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.understand("a", deadline_ms=1_000)

    with scripted(fault) as server, patient(server.url) as client:
        begin = time.monotonic()
        with pytest.raises(DeadlineError):
            asyncio.run(ask(server.url)) if is_async else client.understand("a", deadline_ms=1_000)
        assert 0.99 < time.monotonic() - begin < 20
        while not server.requests and time.monotonic() - begin < 60:  # the server's thread has it soon
            time.sleep(0.01)
        assert len(server.requests) == 1


def test_both_clients_have_every_call_with_its_own_signature_and_description():
    calls = [name for name, call in inspect.getmembers(Calls, inspect.isfunction) if not name.startswith("_")]
    assert {"understand", "rank", "rank_table", "score", "close"} <= set(calls)
    for name in calls:
        waiting, awaiting = getattr(Client, name), getattr(AsyncClient, name)
        assert not inspect.iscoroutinefunction(waiting)
        assert inspect.signature(waiting) == inspect.signature(awaiting)
        assert waiting.__doc__ == awaiting.__doc__


def test_a_table_is_ranked_as_its_candidates_by_column_to_the_last_bit(url):
    table = pa.table({"id": ["a", "b"], "popularity": [1.1, 2.3], "price": pa.array([None, 20], pa.float64())})
    columns = wire.Columns(ids=["a", "b"], features={"popularity": [1.1, 2.3], "price": [None, 20.0]})
    with patient(url) as client:
        expected = client.rank(wire.RankRequest(columns, wire.Query("red"), top_k=1, explain="values"))
        options = wire.RankOptions(wire.Query("red"), top_k=1, explain="values")
        found = client.rank_table(table, options)
        assert (found.ranking, found.explanations) == (expected.ranking, expected.explanations)
        with pytest.raises(InputError, match="one column id of strings") as raised:
            client.rank_table(table.drop_columns(["id"]))
        assert raised.value.field == "id"


@pytest.mark.parametrize("version", [None, "2"])
def test_scores_come_as_tensors_for_a_matrix_or_columns_by_name(url, version):
    features_DF = np.array([[10, 0.5], [np.nan, 2], [30, np.nan]], np.float32)
    # popularity - price / 100, missing counts 0
    expected = [0.4, 2.0, -0.3]
    with patient(url) as client:
        matrix = client.score("shop-ltr", features_DF, version=version)
        named = client.score("shop-ltr", {"popularity": features_DF[:, 1], "price": features_DF[:, 0]}, version=version)
    assert matrix.dtype == np.float32
    assert matrix.tolist() == pytest.approx(expected)
    assert named.tolist() == matrix.tolist()

    async def ask():
        async with AsyncClient(url, deadline_ms=PATIENT_MS) as client:
            return await client.score("shop-ltr", features_DF)

    assert asyncio.run(ask()).tolist() == matrix.tolist()


def test_refusals_of_the_tensors_protocol_are_the_errors_they_stand_for(url):
    with patient(url) as client:
        with pytest.raises(NotFoundError, match="got nobody"):
            client.score("nobody", np.zeros((1, 2), np.float32))
        with pytest.raises(RankyardError) as raised:
            client.score("shop-ltr", np.zeros((1, 3), np.float32))
        assert isinstance(raised.value, InputError)
        assert raised.value.http_status in (400, 422)


def test_scores_that_are_none_are_told_by_the_gateway_s_address():
    with (
        scripted((200, {}, {"outputs": []})) as server,
        patient(server.url) as client,
        pytest.raises(RankyardError, match="inference-header-content-length"),
    ):
        client.score("m", np.zeros((1, 2), np.float32))


def test_an_https_gateway_is_trusted_by_its_authority_s_file_alone(authority):
    ca_file, tls = authority

    async def ask(address: str) -> Understanding:
        async with AsyncClient(address, ca_file=ca_file) as client:
            return await client.understand("a", deadline_ms=PATIENT_MS)

    with scripted(*[(200, {}, ANSWER)] * 2, tls=tls) as server:
        with Client(server.url, ca_file=ca_file) as client:
            assert client.understand("a", deadline_ms=PATIENT_MS).query == "a"
        assert asyncio.run(ask(server.url)).query == "a"
        n_connections = server.n_connections
        with patient(server.url) as client, pytest.raises(InputError, match="name who signed it with ca_file"):
            client.understand("a", deadline_ms=PATIENT_MS)
        assert server.n_connections == n_connections + 1
        assert len(server.requests) == 2


def test_predict_asks_an_https_gateway(authority, capsys):
    ca_file, tls = authority
    with scripted((200, {}, ANSWER), tls=tls) as server:
        assert rankyard.main(["predict", "--url", server.url, "--ca-file", str(ca_file), "a"]) == 0
    assert json.loads(capsys.readouterr().out)["query"] == "a"


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_is_none_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(InputError, match="ca_file must be a readable file of certificates"):
        Client("https://127.0.0.1", ca_file=tmp_path / "ca.pem")


def test_a_ca_file_for_a_plain_address_does_nothing_and_is_refused(authority):
    with pytest.raises(InputError, match="ca_file does nothing for http:"):
        Client("http://127.0.0.1", ca_file=authority[0])


def test_every_refusal_of_a_gateway_is_the_same_error_here():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert len(kinds) > 5
    for kind in kinds:
        told = {"error": {"code": kind.code, "message": "so", "field": "there"}}
        with scripted((kind.http_status, {}, told)) as server, patient(server.url) as client:
            with pytest.raises(RankyardError) as raised:
                client.understand("a")
            assert (type(raised.value), raised.value.message, raised.value.field) == (kind, "so", "there")


def test_what_is_no_gateway_is_told_by_its_address():
    with scripted((502, {}, b"<html>bad gateway</html>")) as server, patient(server.url) as client:
        with pytest.raises(RankyardError, match="status 502 with '<html>bad gateway") as raised:
            client.understand("a")
        assert server.url in raised.value.message
    with (
        scripted((200, {}, {"hello": 1})) as server,
        patient(server.url) as client,
        pytest.raises(RankyardError, match="another shape"),
    ):
        client.understand("a")


@pytest.mark.parametrize("address", ["127.0.0.1:80", "ftp://a", "http://", "http://a:x", "http://a?b=c", ""])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(InputError, match="must be like http://127"):
        Client(address)


def test_nobody_there_is_said_and_is_not_ready():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with Client(free, retries=Retries(most=0)) as client:
        assert not client.is_ready()
        with pytest.raises(UnavailableError, match="rankyard serve"):
            client.understand("a")


def test_the_client_imports_no_model_runtime():
    heavy = "{'numpy', 'torch', 'onnxruntime', 'tokenizers', 'pydantic', 'rich', 'httpx'}"
    code = f"import sys, serving.client; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

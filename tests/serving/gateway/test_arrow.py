"""Candidates as an Arrow IPC stream: what is read, and what is refused."""

import asyncio
import contextlib
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError
from serving.gateway import arrow
from serving.gateway.app import App
from serving.gateway.candidates import Reader
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, only
from serving.gateway.messages import Request
from serving.gateway.observer import Observer
from serving.gateway.telemetry import Telemetry
from serving.runtime.onnx import OnnxRuntime
from tests.serving.gateway.forms import ARROW, LIMITS, by_arrow, by_row, refused


def test_options_of_an_arrow_stream_stand_in_its_metadata(tree_client):
    table = {"ids": ["a", "b", "c"], "price": [1, 2, 3]}
    options = {"query": {"features": {"stock": 2}}, "top_k": 2}
    answers = [
        tree_client.post("/v1/rank", content=by_row(table, **options)),
        tree_client.post(
            "/v1/rank", content=by_arrow(table, options), headers={"content-type": f"{ARROW.upper()}; charset=x"}
        ),
    ]
    by_rows, by_stream = (answer.json()["ranking"] for answer in answers)
    assert by_rows == by_stream
    assert len(by_stream) == 2


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.int8(), pa.uint64(), pa.int64()], ids=str)
def test_arrow_columns_of_any_number_are_read(tree_model, kind):
    column = (
        pa.array([3, None, 5], pa.float64()).cast(kind)
        if kind != pa.float16()
        else pa.array([np.float16(3), None, np.float16(5)], kind)
    )
    asked = Reader(LIMITS, tree_model.sent).read(by_arrow({"ids": ["a", "b", "c"]}, price=column), is_arrow=True)
    assert np.array_equal(asked.request.features["price"], np.array([3, np.nan, 5], np.float32), equal_nan=True)


def arrow_with(**columns) -> bytes:
    return by_arrow({"ids": ["a", "b"]}, **columns)


def stream_of(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def compressed() -> bytes:
    return stream_of(pa.table({"id": ["a"] * 100, "price": [0.0] * 100}), "zstd")


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
        (
            stream_of(pa.table({"id": ["a"]}, metadata={"rankyard": "{"})),
            "malformed_arrow",
            None,
            "metadata under rankyard must be JSON",
        ),
        (by_arrow({"ids": ["a"]}, {"top": 1}), "invalid_input", "top", "is not a field"),
    ],
)
def test_a_wrong_stream_is_refused_with_its_rule_and_value(tree_model, body, code, field, says):
    found = refused(lambda: Reader(LIMITS, tree_model.sent).read(body, is_arrow=True))
    assert found[:2] == (code, field)
    assert says in found[2]


def test_dictionaries_of_a_stream_are_refused():
    body = by_arrow({"ids": ["a", "b"]}, types={"ids": pa.dictionary(pa.int32(), pa.string())})
    assert "schema and record batches alone" in refused(lambda: arrow.read(body, LIMITS))[2]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_stream_is_refused_or_read_and_never_worse(tree_model, data):
    body = bytearray(arrow_with(price=[1.0, 2.0]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    sent = bytes(body[: data.draw(st.integers(0, len(body)))])
    with contextlib.suppress(InputError):
        Reader(LIMITS, tree_model.sent).read(sent, is_arrow=True)


def test_without_pyarrow_a_stream_is_refused_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, says = refused(lambda: arrow.read(arrow_with(), LIMITS))
    assert code == "unsupported_media_type"
    assert "pip install 'rankyard[arrow]'" in says


def test_pyarrow_is_imported_once_and_on_a_thread_where_nobody_waits_for_it(tree_served, monkeypatch):
    threads, prepare = [], arrow.prepare

    def watched() -> None:
        threads.append(threading.current_thread())
        prepare()

    async def ask() -> list[int]:
        config, telemetry = GatewayConfig(deadline_ms=20_000), Telemetry()
        app = App(config, telemetry, Observer(config.logs, telemetry))
        app.dataplane = await Dataplane.open(config, only(tree_served), OnnxRuntime(1))
        try:
            return [
                (await app.answer(Request(time.monotonic(), "POST", "/v1/rank", headers, body))).status
                for body, headers in (
                    (by_row({"ids": ["a"], "price": [1]}), {}),
                    (by_arrow({"ids": ["a"], "price": [1]}), {b"content-type": ARROW.encode()}),
                    (by_arrow({"ids": ["a"], "price": [1]}), {b"content-type": ARROW.encode()}),
                )
            ]
        finally:
            await app.dataplane.close()

    monkeypatch.setattr(arrow, "prepare", watched)
    assert asyncio.run(ask()) == [200, 200, 200]
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()

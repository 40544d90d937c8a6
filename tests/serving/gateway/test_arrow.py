"""Candidates as an Arrow IPC stream: what is read, and what is refused."""

import contextlib
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError
from serving.gateway import arrow
from serving.gateway.candidates import Reader
from tests.serving.gateway.forms import ARROW, LIMITS, by_arrow, by_row, refused


def test_options_of_an_arrow_stream_stand_in_its_metadata(tree_client):
    table = {"ids": ["a", "b", "c"], "price": [1, 2, 3]}
    options = {"query": {"features": {"stock": 2}}, "top_k": 2}
    answers = [
        tree_client.post("/v1/rank", content=by_row(table, **options)),
        tree_client.post("/v1/rank", content=by_arrow(table, options), headers={"content-type": f"{ARROW}; charset=x"}),
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

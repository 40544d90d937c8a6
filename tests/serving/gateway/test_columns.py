"""Columns of numbers in JSON without objects: the same bits as Python's own reading, and nothing but numbers."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError
from serving.gateway.candidates import Reader
from serving.gateway.columns import ColumnReader, may_have_nan
from serving.gateway.wire import without_nan
from tests.serving.gateway.forms import LIMITS

READER = ColumnReader()

decimals = st.one_of(
    st.floats(-1e38, 1e38).map(repr),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})\.[0-9]{1,25}([eE][+-]?[0-9])?", fullmatch=True),
    st.just("null"),
    st.just(" null "),
    st.just("-0.0"),
)


def read(texts: list[str], n_rows: int) -> np.ndarray:
    return READER.read([msgspec.Raw(text.encode()) for text in texts], n_rows)


@settings(deadline=None)
@given(st.lists(st.lists(decimals, min_size=3, max_size=3), min_size=1, max_size=4))
def test_numbers_have_the_bits_that_python_gives_them(columns):
    texts = [f"[{','.join(column)}]" for column in columns]
    expected = np.array([json.loads(text) for text in texts], dtype=np.float64).astype(np.float32)
    assert read(texts, 3).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "column",
    [
        *('["1.5",2]', '["null",2]', "[true,2]", "[false,2]", "[{},2]", "[[1],2]", "[[1,2]]", '"1,2"', '{"a":1,"b":2}'),
        *("[1e39,2]", "[-1e39,null]", "[1e99,2]", "[1]", "[1,2,3]", "[ ]", "[1,]", "null", '[1,"n"]', '[1,"n]"]'),
        *("[1e999,2]", "[NaN,2]", f"[{10**30},2]"),
    ],
)
def test_what_is_not_two_numbers_that_fit_is_refused(column):
    with pytest.raises(ValueError, match="columns must"):
        read(["[0,1]", column], 2)
    assert read(["[0,1]", "[null,2.5]"], 2).tolist()[0] == [0, 1]


def test_columns_longer_than_the_parser_holds_are_read_the_general_way():
    n = 10_000
    values = [place + 1 / 3 for place in range(n)]
    body = {"candidates": {"ids": list(map(str, range(n))), "features": dict.fromkeys("abcdefg", values)}}
    sent = json.dumps(body).encode()
    table = Reader(LIMITS, "abcdefg").read(sent).request.features
    assert len(sent) > 1 << 20
    assert all(table[name].tolist() == np.array(values, np.float32).tolist() for name in "abcdefg")


def test_a_request_by_column_makes_no_object_of_a_number(monkeypatch):
    read_columns: list[int] = []
    monkeypatch.setattr(
        ColumnReader,
        "read",
        lambda _self, columns, n: read_columns.append(n) or np.zeros((len(columns), n), np.float32),
    )
    Reader(LIMITS, ["a"]).read(b'{"candidates":{"ids":["x","y"],"features":{"a":[1,null]}}}')
    assert read_columns == [2]


@pytest.mark.parametrize("n", [2, 200_000])  # the second is read the general way
@pytest.mark.parametrize("text", ["red", "red [new]", 'red ["', "red \\\\"])
def test_a_column_sent_twice_is_refused(n, text):
    limits = LIMITS.model_copy(update={"max_candidates": n})
    ids, values = json.dumps([f"{text} {place}" for place in range(n)]), json.dumps([1.5] * n)
    once = f'{{"candidates": {{"ids": {ids}, "features": {{"price": {values}, "stock": {values}}}}}}}'
    assert len(Reader(limits, ["price", "stock"]).read(once.encode()).request.features) == 2
    for name in ("price", "ids"):
        twice = once.replace('"stock"', '"price"') if name == "price" else once.replace('"ids"', '"ids": [], "ids"')
        with pytest.raises(InputError, match=f"must have a name once, got '{name}' twice"):
            Reader(limits, ["price", "stock"]).read(twice.encode())


def test_a_column_sent_twice_beside_a_bracket_in_disguise_is_refused():
    twice = rb'{"candidates": {"ids": ["\u005b"], "features": {"price": [1], "price": [2]}}}'
    with pytest.raises(InputError, match="must have a name once, got 'price' twice"):
        Reader(LIMITS, ["price"]).read(twice)


@settings(deadline=None)
@given(st.lists(st.one_of(st.just("NaN"), st.floats(-9, 9).map(repr), st.text(alphabet='aN"\\[ ').map(json.dumps))))
def test_nan_is_null_but_within_a_text(values):
    body = f"[{','.join([*values, 'NaN'])}]".encode()
    expected = [None if value != value else value for value in json.loads(body)]
    assert json.loads(without_nan(body)) == expected


def test_a_text_keeps_its_nan():
    body = b'{"a \\"NaN": NaN, "NaN\\\\": [NaN, "NaN, NaN", "\\\\\\"NaN"]}'
    assert without_nan(body) == b'{"a \\"NaN": null, "NaN\\\\": [null, "NaN, NaN", "\\\\\\"NaN"]}'


@settings(deadline=None)
@given(st.binary(max_size=9) | st.text(alphabet="Na", max_size=9).map(str.encode))
def test_a_body_is_searched_for_nan_unless_it_can_have_none(body):
    assert may_have_nan(body) or b"NaN" not in body
    assert may_have_nan(body) == any(body[i : i + 1] == body[i + 2 : i + 3] == b"N" for i in range(len(body)))

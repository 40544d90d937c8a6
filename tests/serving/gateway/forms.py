"""One table of candidates in every form that a request to rank may have."""

import asyncio
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from models.batch import Encoded
from models.errors import RankyardError
from serving.gateway import arrow
from serving.gateway.config import LimitsConfig
from serving.gateway.open_inference import http, inputs
from tests.tree_bundle import NAMES

ARROW = "application/vnd.apache.arrow.stream"
LIMITS = LimitsConfig()


numbers = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**24), 2**24)


@st.composite
def tables(draw) -> dict[str, list]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    n = draw(st.integers(1, 6))
    return {
        "ids": [f"p{i}" for i in range(n)],
        **{name: draw(st.lists(numbers, min_size=n, max_size=n)) for name in names},
    }


def by_row(table: dict, **rest) -> bytes:
    names = [name for name in table if name != "ids"]
    candidates = [
        {"id": identity, "features": {name: table[name][i] for name in names}}
        for i, identity in enumerate(table["ids"])
    ]
    return json.dumps({"candidates": candidates, **rest}).encode()


def by_column(table: dict, **rest) -> bytes:
    columns = {name: values for name, values in table.items() if name != "ids"}
    return json.dumps({"candidates": {"ids": table["ids"], "features": columns}, **rest}).encode()


def by_arrow(table: dict, options: dict | None = None, types: dict | None = None, **rest) -> bytes:
    columns = {
        "id" if name == "ids" else name: pa.array(
            values if name == "ids" else [None if v is None else float(v) for v in values],
            (types or {}).get(name, pa.string() if name == "ids" else pa.float64()),
        )
        for name, values in table.items()
    }
    found = pa.table({**columns, **rest})
    if options is not None:
        found = found.replace_schema_metadata({arrow.OPTIONS: json.dumps(options)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as stream:
        stream.write_table(found, max_chunksize=2 if len(found) < 100 else None)
    return sink.getvalue().to_pybytes()


def as_tensors(table: dict, *, is_binary: bool, dtype: str = "FP32") -> tuple[bytes, int | None]:
    """One tensor a feature."""
    inputs, raw = [], b""
    for name, values in table.items():
        if name == "ids":
            continue
        column = np.array(values, dtype=np.float64).astype({"FP32": "<f4", "FP64": "<f8"}[dtype])
        tensor = {"name": name, "shape": [len(column)], "datatype": dtype}
        if is_binary:
            tensor["parameters"] = {"binary_data_size": column.nbytes}
            raw += column.tobytes()
        else:
            tensor["data"] = [None if np.isnan(value) else float(value) for value in column]
        inputs.append(tensor)
    header = json.dumps({"inputs": inputs}).encode()
    return header + raw, len(header) if is_binary else None


def read_tensors(body: bytes, length: int | None, served, model, limits=LIMITS) -> list[Encoded]:
    """What a model reads of an Open Inference request."""
    header_length = b"" if length is None else str(length).encode()
    request = http.tensors(http.read(body, header_length), body, header_length)
    asked = asyncio.run(inputs.read(request.tensors, served, model, limits))
    return list(asked.rows) if asked.candidates is None else [model.encode(asked.candidates)]


def matrix_of(model, asked) -> bytes:
    return np.asarray(model.encode(asked.request).arrays["features"], np.float32).tobytes()


def refused(read) -> tuple[str, str | None, str]:
    with pytest.raises(RankyardError) as caught:
        read()
    return caught.value.code, caught.value.field, caught.value.message

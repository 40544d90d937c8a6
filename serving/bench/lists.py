"""Lists of candidates as requests carry them, by value, in every form that a gateway reads.

A list of 100 candidates takes a millisecond to write, so lists are written before the load begins, with two places left
open: the query's text and one feature's value, which make each request its own and are filled in as it is sent.
Legend: D candidates, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from serving.gateway import arrow, wire

ROWS, COLUMNS, ARROW, BINARY = "rows", "columns", "arrow", "binary"

HEAD_BYTES = 256
"""Length of the JSON before binary tensors, filled up with blanks, which JSON allows."""

_OPTIONS_BYTES = 1_024
_MISSING = 0.05
_PLACE = "#"
"""Stands, while a list is written, for what is filled in when it is sent."""
_VALUE = np.float32(1.23456789e-30)
"""The same among numbers: one that no list has."""

Fill = Callable[[str, float], bytes]
"""The body with this query and this value of the last candidate's last feature."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """One list: ids, texts where there are some, and values [D, F], missing as NaN."""

    ids: list[str]
    texts: list[str] | None
    features: tuple[str, ...]
    values: NDArray[np.float32]


def drawn(
    features: Sequence[str], size: int, generator: np.random.Generator, texts: Sequence[str] | None
) -> Candidates:
    """Draw values of six digits, one in twenty missing, but the last."""
    values_DF = np.round(generator.random((size, len(features))), 6).astype(np.float32)
    values_DF[generator.random(values_DF.shape) < _MISSING] = np.nan
    if features:
        values_DF[-1, -1] = _VALUE
    return Candidates(
        [f"p{place}" for place in range(size)], list(texts) if texts else None, tuple(features), values_DF
    )


def written(candidates: Candidates, form: str, top_k: int | None) -> Fill:
    """Write a list in a form; InputError where that needs a package which is not there."""
    return _WRITERS[form](candidates, top_k)


def _rows(candidates: Candidates, top_k: int | None) -> Fill:
    values, texts, features = _json_values(candidates), candidates.texts, candidates.features
    rows = [
        {"id": identity, **({"text": texts[row]} if texts else {})}
        | {"features": dict(zip(features, values[row], strict=True))}
        for row, identity in enumerate(candidates.ids)
    ]
    return _json(rows, top_k)


def _columns(candidates: Candidates, top_k: int | None) -> Fill:
    columns = list(map(list, zip(*_json_values(candidates), strict=True)))
    texts = {"texts": candidates.texts} if candidates.texts else {}
    features = {"features": dict(zip(candidates.features, columns, strict=True))}
    return _json({"ids": candidates.ids, **texts} | features, top_k)


def _arrow(candidates: Candidates, top_k: int | None) -> Fill:
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise InputError("--form arrow needs the package pyarrow, pip install 'rankyard[arrow]'") from error
    columns: dict[str, Any] = {"id": candidates.ids}
    if candidates.texts:
        columns["text"] = candidates.texts
    for name, column_D in zip(candidates.features, candidates.values.T, strict=True):
        columns[name] = pa.array(column_D, pa.float32(), from_pandas=True)
    options = wire.RankOptions(wire.Query(_PLACE * _OPTIONS_BYTES))
    # The options are replaced whole: their JSON, filled up with blanks, has the length of the place.
    stream = arrow.write(pa.table(columns), options)
    place = wire.encode(options)
    before, _, rest = stream.partition(place)
    value = _VALUE.tobytes()
    middle, found, after = rest.rpartition(value) if candidates.features else (rest, b"", b"")

    def fill(query: str, number: float) -> bytes:
        asked = wire.encode(wire.RankOptions(wire.Query(query), top_k))
        if len(asked) > len(place):
            raise InputError(
                f"--form arrow sends queries of at most {_OPTIONS_BYTES} bytes, one has {len(query.encode())}; "
                "choose another form or other queries"
            )
        return b"%b%b%b%b%b" % (
            before,
            asked.ljust(len(place)),
            middle,
            np.float32(number).tobytes() if found else b"",
            after,
        )

    return fill


def _binary(candidates: Candidates, _top_k: int | None) -> Fill:
    values_DF = candidates.values
    tensor = {
        "name": "features",
        "shape": list(values_DF.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": values_DF.nbytes},
    }
    head = msgspec.json.encode({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    before = head.ljust(HEAD_BYTES) + values_DF.tobytes()[: -_VALUE.nbytes]
    return lambda _query, number: before + np.float32(number).tobytes()


def _json(candidates: object, top_k: int | None) -> Fill:
    before, found, after = json.dumps(candidates, separators=(",", ":")).encode().partition(f'"{_PLACE}"'.encode())
    end = b"" if top_k is None else b',"top_k":%d' % top_k

    def fill(query: str, number: float) -> bytes:
        value = b"%.6f" % number if found else b""
        asked = json.dumps(query).encode()
        return b'{"candidates":%b%b%b,"query":{"text":%b}%b}' % (before, value, after, asked, end)

    return fill


def _json_values(candidates: Candidates) -> list[list[Any]]:
    """Values [D, F] as JSON has them: null where missing, and the place to be filled."""
    values_DF = candidates.values.astype(np.float64).round(6).astype(object)
    values_DF[np.isnan(candidates.values)] = None
    if candidates.features:
        values_DF[-1, -1] = _PLACE
    values: list[list[Any]] = values_DF.tolist()
    return values


_WRITERS: dict[str, Callable[[Candidates, int | None], Fill]] = {
    ROWS: _rows,
    COLUMNS: _columns,
    ARROW: _arrow,
    BINARY: _binary,
}

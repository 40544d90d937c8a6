"""Candidates as an Arrow IPC stream: a column `id`, a column `text` where there are texts, a column a feature.

https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
What else a request says stands in the schema's metadata, under `rankyard`, as the JSON of `wire.RankOptions`.
pyarrow is an extra, imported on first use: it takes a third of a second and 40 MB.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.ranking import RankRequest, Table
from serving.gateway import wire
from serving.gateway.config import LimitsConfig
from serving.gateway.errors import MalformedArrowError, MalformedError, MediaError
from serving.gateway.rules import check_number, float32

CONTENT_TYPE = b"application/vnd.apache.arrow.stream"
OPTIONS = b"rankyard"

_ID, _TEXT = "id", "text"
_SCHEMA_HEADER, _BATCH_HEADER = 1, 3
# Places of fields in the flatbuffers Message and RecordBatch of Arrow's Message.fbs.
_HEADER_TYPE, _HEADER, _BODY_LENGTH, _COMPRESSION = 1, 2, 3, 3
_MOST_MESSAGES = 1_024
_CONTINUATION = 0xFFFFFFFF


def prepare() -> None:
    """Import pyarrow where it is installed; for a thread, as everybody else would wait as long."""
    with suppress(ModuleNotFoundError):
        import pyarrow  # noqa: F401


def read(body: bytes, limits: LimitsConfig) -> tuple[wire.RankOptions, RankRequest]:
    """Read a stream; MediaError without pyarrow, MalformedArrowError for what is none, InputError for bad columns."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise MediaError(
            "a body in Arrow needs the package pyarrow in the gateway, it is not installed; "
            "pip install 'rankyard[arrow]' there, or send JSON"
        ) from error
    _check_plain(body)
    try:
        with pa.ipc.open_stream(body) as stream:
            table = stream.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MalformedArrowError(
            f"a body must be an Arrow IPC stream, got {len(body)} bytes with: {str(error).splitlines()[0]}; correct it"
        ) from error
    check_number(table.num_rows, limits)
    options = _options(table.schema.metadata or {})
    request = RankRequest(
        ids=tuple(_strings(table, _ID)),
        text=options.query.text,
        texts=tuple(text or "" for text in _strings(table, _TEXT)) if _TEXT in table.column_names else None,
        features=_features(table),
        query_features={
            name: float(float32(f"query.features.{name}", [value])[0]) for name, value in options.query.features.items()
        },
    )
    return options, request


def write(candidates: Any, options: wire.RankOptions) -> bytes:
    """Write a `pyarrow.Table` as a stream that `read` reads."""
    import pyarrow as pa

    table = candidates.replace_schema_metadata({OPTIONS: wire.encode(options)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _options(metadata: Mapping[bytes, bytes]) -> wire.RankOptions:
    try:
        return wire.decode(metadata.get(OPTIONS, b"{}"), wire.options_decoder)
    except MalformedError as error:
        raise MalformedArrowError(
            f"the schema's metadata under {OPTIONS.decode()} must be JSON, it is not: {error.message}"
        ) from error


def _strings(table: Any, name: str) -> list[Any]:
    import pyarrow as pa

    places = table.schema.get_all_field_indices(name)
    if len(places) != 1:
        raise InputError(
            f"candidates must have one column {name} of strings, got {len(places)}; send it once", field=name
        )
    kind = table.schema.field(places[0]).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"the column {name} must have strings, got {kind}; send it so", field=name)
    column = table.column(places[0])
    if name == _ID and column.null_count:
        raise InputError("every candidate must have an id, one is null; name each", field=name)
    values: list[Any] = column.to_pylist()
    return values


def _features(table: Any) -> Table:
    names = [name for name in table.column_names if name not in (_ID, _TEXT)]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise InputError(f"a feature must have one column, {twice!r} has two; send one", field=f"features.{twice}")
    matrix_ND = np.empty((len(names), table.num_rows), np.float32)
    # The columns' own arrays by number: `table.column(name)` would look the name up.
    columns = [table.column(place) for place, name in enumerate(table.column_names) if name not in (_ID, _TEXT)]
    with np.errstate(over="ignore"):
        for place, (name, column) in enumerate(zip(names, columns, strict=True)):
            matrix_ND[place] = _numbers(name, column)
    if np.isinf(matrix_ND).any():
        for name, column in zip(names, columns, strict=True):
            float32(f"candidates.features.{name}", np.asarray(_numbers(name, column)))
    return Table(tuple(names), matrix_ND.T)


def _numbers(name: str, column: Any) -> NDArray[np.generic] | float:
    """A column [D] as numpy has it, null as NaN."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_null(kind):
        return np.nan
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        field = f"candidates.features.{name}"
        raise InputError(f"{field} must have numbers, got {kind}; send floats or integers", field=field)
    # Integers with nulls become float64, with NaN in their place.
    numbers: NDArray[np.generic] = column.to_numpy()
    return numbers


def _check_plain(body: bytes) -> None:
    """Refuse what pyarrow would have to unpack: a few bytes can stand for gigabytes.

    Walks from message to message: a length, the flatbuffer of that length, and the body whose length it says.
    """
    place = n_messages = 0
    try:
        while place + 4 <= len(body):
            n_messages += 1
            if n_messages > _MOST_MESSAGES:
                raise InputError(
                    f"a stream must have at most {_MOST_MESSAGES} record batches; send fewer, longer ones",
                    field="candidates",
                )
            (size,) = struct.unpack_from("<I", body, place)
            place += 4
            if size == _CONTINUATION:
                (size,) = struct.unpack_from("<I", body, place)
                place += 4
            if size == 0:
                return
            message = body[place : place + size]
            root = struct.unpack_from("<I", message, 0)[0]
            kind_at, header_at = _field(message, root, _HEADER_TYPE), _field(message, root, _HEADER)
            kind = message[kind_at] if kind_at else 0
            if kind not in (_SCHEMA_HEADER, _BATCH_HEADER):
                raise InputError(
                    "a stream must have a schema and record batches alone, it also has dictionaries or tensors; "
                    "send strings and numbers as they are",
                    field="candidates",
                )
            header = header_at + struct.unpack_from("<I", message, header_at)[0]
            if kind == _BATCH_HEADER and _field(message, header, _COMPRESSION):
                raise InputError("record batches must not be compressed; send them plain", field="candidates")
            length_at = _field(message, root, _BODY_LENGTH)
            length = struct.unpack_from("<q", message, length_at)[0] if length_at else 0
            if length < 0:
                raise struct.error(f"a body of {length} bytes")
            place += size + length
    except (struct.error, IndexError) as error:
        raise MalformedArrowError(
            f"a body must be an Arrow IPC stream, got {len(body)} bytes with: {error}; correct it"
        ) from error


def _field(buffer: bytes, table: int, number: int) -> int:
    """Where a table's field stands in a flatbuffer, 0 where it has none."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    (size,) = struct.unpack_from("<H", buffer, vtable)
    at = 4 + 2 * number
    if at + 2 > size:
        return 0
    offset: int = struct.unpack_from("<H", buffer, vtable + at)[0]
    return table + offset if offset else 0

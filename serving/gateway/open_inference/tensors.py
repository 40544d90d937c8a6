"""Tensors as the Open Inference Protocol writes them: as values, or as raw little-endian bytes.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md#tensor-data
A tensor of BYTES holds texts here, each in UTF-8.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from serving.gateway.errors import shown

Tensor = NDArray[Any]
"""Numbers, or for BYTES objects that are `str`."""

BYTES = "BYTES"
DATATYPES = {"float32": "FP32", "int64": "INT64"}
"""What models read and give, by numpy's names."""

_MOST_AXES, _MOST_VALUES = 8, 2**31
_LENGTH = struct.Struct("<I")
_DTYPES = {
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    **{
        f"{kind}{8 * size}": f"<{letter}{size}"
        for kind, letter in (("INT", "i"), ("UINT", "u"))
        for size in (1, 2, 4, 8)
    },
}


def n_values(datatype: str, shape: Sequence[int], place: str) -> int:
    """How many values a tensor of this shape has; InputError for a datatype or a shape that is none.

    place: where the tensor stands in the request, for messages.
    """
    if datatype != BYTES and datatype not in _DTYPES:
        raise InputError(
            f"{place}.datatype must be one of {', '.join(_DTYPES)} or {BYTES}, got {datatype[:20]!r}; send so",
            field=f"{place}.datatype",
        )
    if any(size < 0 for size in shape):
        raise InputError(
            f"{place}.shape must be sizes of 0 or more, got {list(shape)!s:.60}; send so", field=f"{place}.shape"
        )
    # What no body could fill, but for an axis of 0, numpy refuses to make.
    if len(shape) > _MOST_AXES or math.prod(max(size, 1) for size in shape) > _MOST_VALUES:
        raise InputError(
            f"{place}.shape must have at most {_MOST_AXES} axes and {_MOST_VALUES} values, got {list(shape)!s:.60}; "
            "send less",
            field=f"{place}.shape",
        )
    return math.prod(shape)


def from_raw(raw: memoryview, datatype: str, shape: Sequence[int], place: str) -> Tensor:
    """Read a tensor from its bytes; texts have their length, an unsigned 32-bit number, before them."""
    n = n_values(datatype, shape, place)
    if datatype == BYTES:
        texts = [_text(one, place) for one in _elements(raw, place)]
        if len(texts) != n:
            raise InputError(f"{place} must have {n} texts for {list(shape)}, got {len(texts)}; send as many")
        return _objects(texts, shape)
    dtype = np.dtype(_DTYPES[datatype])
    if len(raw) != n * dtype.itemsize:
        raise InputError(
            f"{place} must have {n * dtype.itemsize} bytes for {list(shape)} of {datatype}, got {len(raw)}; send as "
            "many as the shape says",
            field=place,
        )
    return (np.frombuffer(raw, dtype) if n else np.empty(0, dtype)).reshape(shape)


def from_values(values: Sequence[Any], datatype: str, shape: Sequence[int], place: str) -> Tensor:
    """Read a tensor from its values: in the order of its memory, or nested at most as deep as it has axes.

    A number of a float type may be None: NaN.
    """
    n = n_values(datatype, shape, place)
    field = f"{place}.data"
    for _ in shape[1:]:
        if any(isinstance(value, list) for value in values):
            values = list(chain.from_iterable(value if isinstance(value, list) else [value] for value in values))
    if len(values) != n:
        raise InputError(
            f"{field} must have {n} values for the shape {list(shape)}, got {len(values)}; send as many", field=field
        )
    if datatype == BYTES:
        return _objects([_text(value, field) for value in values], shape)
    is_float = datatype.startswith("FP")
    allowed = (int, float, type(None)) if is_float else (int,)
    wrong = next((value for value in values if isinstance(value, bool) or not isinstance(value, allowed)), ())
    if wrong != ():
        rule = "numbers or null" if is_float else "integers"
        raise InputError(f"{field} must be {rule}, got {shown(wrong)}; send so", field=field)
    # In float64, whatever float is declared: what does not fit into float32 is found, and said, later.
    dtype = np.dtype(np.float64 if is_float else _DTYPES[datatype])
    try:
        return np.array(values, dtype).reshape(shape)
    except OverflowError as error:
        raise InputError(f"{field} must fit into {datatype}, got: {error}; send less", field=field) from error


def datatype_of(tensor: Tensor) -> str:
    """Give the protocol's name of what a model answers in, or of texts."""
    if tensor.dtype.kind == "O":
        return BYTES
    return "FP32" if tensor.dtype == np.float32 else DATATYPES[tensor.dtype.name]


def to_raw(tensor: Tensor, datatype: str) -> bytes:
    """Bytes of a tensor."""
    if datatype == BYTES:
        texts = [text.encode() for text in tensor.ravel()]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    return np.ascontiguousarray(tensor, _DTYPES[datatype]).tobytes()


def _elements(raw: memoryview, place: str) -> Iterator[bytes]:
    start = 0
    while start < len(raw):
        end = start + _LENGTH.size
        if end <= len(raw):
            start, end = end, end + _LENGTH.unpack(raw[start:end])[0]
        if end > len(raw):
            raise InputError(
                f"{place} must be texts with their lengths before them, {len(raw)} bytes end within one; send it whole",
                field=place,
            )
        yield bytes(raw[start:end])
        start = end


def _text(value: Any, field: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return bytes.decode(value)
    except (TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{field} must be texts in UTF-8, got {value!r:.60}; send so", field=field) from error


def _objects(texts: Sequence[str], shape: Sequence[int]) -> Tensor:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)

"""Just enough of protobuf's wire format to read numbers out of an ONNX file, where the package `onnx` is not installed.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(message: bytes) -> Iterator[tuple[int, int, Any]]:
    """Give each field of a message: its number, its wire type, and an int, or bytes of what has a length.

    ValueError where the bytes are no message.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == _VARINT:
            value, place = _varint(message, place)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            value, place = int.from_bytes(message[place : place + size], "little"), place + size
        elif kind == _BYTES:
            size, place = _varint(message, place)
            value, place = message[place : place + size], place + size
        else:
            raise ValueError(f"a field must have a wire type of 0, 1, 2 or 5, got {kind}")
        if place > len(message):
            raise ValueError("a message must not end within a field")
        yield number, kind, value


def integers(message: bytes, number: int) -> NDArray[np.int64]:
    """All values of a repeated field of integers, packed or each behind its key; other fields are passed over.

    A run of single values is read at once: an ensemble of trees has a hundred thousand of them.
    """
    return _repeated(message, number, _VARINT, _varints)


def floats(message: bytes, number: int) -> NDArray[np.float32]:
    """All values of a repeated field of float32, packed or each behind its key; other fields are passed over."""
    return _repeated(message, number, _FIXED32, lambda packed: np.frombuffer(packed, "<f4"))


def _repeated(message: bytes, number: int, kind: int, read: Any) -> NDArray[Any]:
    single, packed = number << 3 | kind, number << 3 | _BYTES
    parts = []
    place = 0
    while place < len(message):
        start = place
        key, place = _varint(message, place)
        if key == single:
            # The run reaches to the end of the message, or to the first key that is another one.
            values, place = _run(message, start, key, kind)
            parts.append(values)
            continue
        size = 0
        if key & 7 == _VARINT:
            _, place = _varint(message, place)
        elif key & 7 == _BYTES:
            size, place = _varint(message, place)
        else:
            size = 4 if key & 7 == _FIXED32 else 8
        if key == packed:
            parts.append(read(message[place : place + size]))
        place += size
    return np.concatenate(parts) if parts else read(b"")


def _run(message: bytes, start: int, key: int, kind: int) -> tuple[NDArray[Any], int]:
    if key > 0x7F:
        raise ValueError(f"a repeated field's key must take one byte, got {key}")
    data = np.frombuffer(message, np.uint8, offset=start)
    if kind == _FIXED32:
        records = data[: len(data) // 5 * 5].reshape(-1, 5)
        n = _leading(records[:, 0] == key)
        return np.ascontiguousarray(records[:n, 1:]).view("<f4").reshape(-1), start + 5 * n
    # Keys and values alternate, both as varints.
    ends = np.flatnonzero(data < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    n = min(_leading((data[starts[::2]] == key) & (starts[::2] == ends[::2])), len(ends) // 2)
    if not n:
        raise ValueError("a message must not end within a field")
    size = int(ends[2 * n - 1]) + 1
    return _varints(message[start : start + size])[1::2], start + size


def _leading(is_so: NDArray[np.bool_]) -> int:
    return len(is_so) if is_so.all() else int(np.argmin(is_so))


def _varints(data: bytes) -> NDArray[np.int64]:
    """Read a run of varints: seven bits a byte, the lowest first, the last byte below 128."""
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if not len(ends):
        return np.empty(0, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    values = np.zeros(len(ends), np.uint64)
    for byte in range(int((ends - starts).max()) + 1):
        place = starts + byte
        is_there = place <= ends
        bits = (octets[np.minimum(place, ends)] & 0x7F).astype(np.uint64) << np.uint64(7 * byte)
        values |= np.where(is_there, bits, np.uint64(0))
    return values.view(np.int64)


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("a message must not end within a number")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def as_float(bits: int) -> float:
    """Read the bits of a fixed32 field as the float32 that they are."""
    return float(struct.unpack("<f", bits.to_bytes(4, "little"))[0])

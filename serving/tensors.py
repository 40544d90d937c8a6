"""Features and scores as binary tensors of the Open Inference Protocol, as a client writes and reads them.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
A body is JSON, whose length a header says, and then the tensors' little-endian bytes. D candidates, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

HEADER_LENGTH = "inference-header-content-length"

_MATRIX, _FLOAT32 = "features", np.dtype("<f4")


def write(features: NDArray[np.floating] | Mapping[str, NDArray[np.floating]]) -> tuple[bytes, int]:
    """Write a request for binary scores: [D, F] as a model reads it, or [D] by name. Also the length of its JSON."""
    named = features if isinstance(features, Mapping) else {_MATRIX: features}
    tensors = {name: np.ascontiguousarray(array, dtype=_FLOAT32) for name, array in named.items()}
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": "FP32",
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors.items()
    ]
    head = msgspec.json.encode({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return b"".join([head, *(array.tobytes() for array in tensors.values())]), len(head)


def read(body: bytes, headers: Mapping[str, str]) -> NDArray[np.float32]:
    """Read the scores [D] of an answer; ValueError or MsgspecError where it has none."""
    length = headers.get(HEADER_LENGTH)
    if length is None:
        raise ValueError(f"an answer in binary has the header {HEADER_LENGTH}")
    (output,) = msgspec.json.decode(body[: int(length)], type=_Answer).outputs
    scores_D = np.frombuffer(body, _FLOAT32, offset=int(length))
    if output.datatype != "FP32" or scores_D.size != np.prod(output.shape):
        raise ValueError(f"scores of the shape {output.shape} have other bytes")
    return scores_D


class _Output(msgspec.Struct):
    datatype: str
    shape: list[int]


class _Answer(msgspec.Struct):
    outputs: list[_Output]

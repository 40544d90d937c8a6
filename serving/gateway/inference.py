"""Rankers by the Open Inference Protocol: a matrix of features in, scores out, as JSON or as raw little-endian bytes.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
A client sends the tensor that the model reads (`features`, its columns in the model's order), or one tensor a feature,
by name, as columns. Scores have the shape that a Triton server gives them, [D, 1].
Legend: D candidates, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType
from numpy.typing import NDArray

from models.batch import Encoded
from models.errors import InputError
from models.ranking import RankingModel, RankRequest, Table
from serving.gateway import wire
from serving.gateway.config import LimitsConfig
from serving.gateway.rules import check_number, float32
from serving.runtime.protocol import ServedModel

HEADER_LENGTH = b"inference-header-content-length"
BINARY = b"application/octet-stream"

_MATRIX, _MASK, _SCORE = "features", "mask", "score"
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
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


class Parameters(Struct, frozen=True):
    """Of a tensor, or of the whole request; others are passed over, as the protocol says."""

    binary_data_size: int | None = None
    binary_data: bool | None = None
    binary_data_output: bool | None = None


class InputTensor(Struct, frozen=True):
    """A tensor that was sent: its `data` here, nested or flat, or `binary_data_size` bytes behind the JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: Parameters = Parameters()


class OutputTensor(Struct, frozen=True):
    """A tensor that is asked for."""

    name: str
    parameters: Parameters = Parameters()


class InferRequest(Struct, frozen=True):
    """The JSON of a request."""

    inputs: list[InputTensor]
    id: str | None = None
    outputs: list[OutputTensor] | None = None
    parameters: Parameters = Parameters()


class AnsweredTensor(Struct, frozen=True, omit_defaults=True):
    """A tensor that is answered."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}
    data: list[float] | None = None


class InferAnswer(Struct, frozen=True):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    outputs: list[AnsweredTensor]
    id: str | UnsetType = UNSET


class TensorMetadata(Struct, frozen=True):
    """What a model takes or gives; -1: any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct, frozen=True):
    """A model, as GET /v2/models/NAME says it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferError(Struct, frozen=True):
    """A refusal, as the protocol has it: one sentence."""

    error: str


_decoder = msgspec.json.Decoder(InferRequest)


@dataclass(frozen=True, slots=True)
class Inference:
    """A request that was read: what the model is to score, and how the answer is to be written."""

    encoded: Encoded
    id: str | None
    is_binary: bool


def read(
    body: bytes, header_length: int | None, served: ServedModel, model: RankingModel, limits: LimitsConfig
) -> Inference:
    """Read a request; header_length: bytes of JSON before the raw tensors (None: all of it is JSON).

    MalformedError for what is not JSON, InputError with the tensor's place, TooLargeError beyond a limit.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise InputError(
            f"Inference-Header-Content-Length must be from 0 to the body's {len(body)} bytes, got {header_length}; "
            "send the length of the JSON"
        )
    header = body if header_length is None else body[:header_length]
    request = wire.decode(header, _decoder)
    rest = memoryview(b"" if header_length is None else body[header_length:])
    tensors: dict[str, NDArray[np.generic]] = {}
    for place, sent in enumerate(request.inputs):
        if sent.name in tensors:
            raise InputError(f"a tensor must be sent once, got {sent.name!r} twice", field=f"inputs[{place}].name")
        tensors[sent.name], rest = _array(sent, rest, f"inputs[{place}]")
    if len(rest):
        raise InputError(f"a body must end with its last tensor, {len(rest)} bytes follow; correct binary_data_size")
    return Inference(_encoded(tensors, served, model, limits), request.id, _is_binary(request))


def write(scores_D: NDArray[np.float32], asked: Inference, served: ServedModel) -> tuple[bytes, int | None]:
    """Write an answer: its body, and how much of it is JSON where the scores follow as bytes."""
    shape, identity = [len(scores_D), 1], UNSET if asked.id is None else asked.id
    if asked.is_binary:
        raw = np.ascontiguousarray(scores_D, "<f4").tobytes()
        tensor = AnsweredTensor(_SCORE, "FP32", shape, {"binary_data_size": len(raw)})
        header = wire.encode(InferAnswer(served.name, served.version, [tensor], identity))
        return header + raw, len(header)
    tensor = AnsweredTensor(_SCORE, "FP32", shape, data=scores_D.tolist())
    return wire.encode(InferAnswer(served.name, served.version, [tensor], identity)), None


def metadata(served: ServedModel) -> ModelMetadata:
    """What the model takes and gives, as its Triton configuration declares it."""
    signature = served.bundle.manifest.signature
    inputs, outputs = (
        [TensorMetadata(spec.name, _DATATYPES[spec.dtype], [-1, *(spec.shape[1:] or (1,))]) for spec in specs]
        for specs in (signature.inputs, signature.outputs)
    )
    return ModelMetadata(served.name, [served.version], "onnxruntime_onnx", inputs, outputs)


def _array(sent: InputTensor, rest: memoryview, field: str) -> tuple[NDArray[np.generic], memoryview]:
    """A tensor as it was sent, and the bytes behind it."""
    if sent.datatype not in _DTYPES:
        raise InputError(
            f"{field}.datatype must be one of {', '.join(_DTYPES)}, got {sent.datatype!r}; send numbers",
            field=f"{field}.datatype",
        )
    dtype = np.dtype(_DTYPES[sent.datatype])
    if any(size < 0 for size in sent.shape):
        raise InputError(f"{field}.shape must be sizes of 0 or more, got {sent.shape}", field=f"{field}.shape")
    n_values = math.prod(sent.shape)
    size = sent.parameters.binary_data_size
    if size is not None:
        if size != n_values * dtype.itemsize or size > len(rest):
            raise InputError(
                f"{field} must have {n_values * dtype.itemsize} bytes for {sent.shape} of {sent.datatype}, got "
                f"binary_data_size {size} and {len(rest)} bytes; send as many as the shape says",
                field=f"{field}.parameters.binary_data_size",
            )
        values = np.frombuffer(rest[:size], dtype) if size else np.empty(0, dtype)
        return values.reshape(sent.shape), rest[size:]
    if sent.data is None:
        raise InputError(f"{field} must have data, or binary_data_size; send one", field=f"{field}.data")
    flat = _flat(sent.data, field)
    if len(flat) != n_values:
        raise InputError(
            f"{field}.data must have {n_values} values for the shape {sent.shape}, got {len(flat)}; send as many",
            field=f"{field}.data",
        )
    # In float64, whatever is declared: what does not fit into float32 is found, and said, later.
    return np.array(flat, np.float64).reshape(sent.shape), rest


def _flat(data: list[Any], field: str) -> list[float | None]:
    """Values of nested lists, null as None."""
    while any(isinstance(item, list) for item in data):
        data = list(chain.from_iterable(item if isinstance(item, list) else [item] for item in data))
    wrong = next((item for item in data if isinstance(item, bool) or not isinstance(item, int | float | None)), UNSET)
    if wrong is not UNSET:
        raise InputError(f"{field}.data must be numbers or null, got {wrong!r}; send so", field=f"{field}.data")
    return data


def _encoded(
    tensors: dict[str, NDArray[np.generic]], served: ServedModel, model: RankingModel, limits: LimitsConfig
) -> Encoded:
    manifest = served.bundle.manifest
    if _MATRIX not in {spec.name for spec in manifest.signature.inputs}:
        raise InputError(
            f"{served.ref} reads texts, which are ranked by POST /v1/rank alone; ask there", field="inputs"
        )
    if _MATRIX not in tensors:
        return _by_name(tensors, model, limits)
    n_features = len(manifest.features or ())
    matrix = tensors.pop(_MATRIX)
    if matrix.ndim != 2 or matrix.shape[1] != n_features:
        raise InputError(
            f"{_MATRIX} must have the shape [candidates, {n_features}] for {served.ref}, got {list(matrix.shape)}; "
            "send every column, or one tensor a feature",
            field=_MATRIX,
        )
    check_number(len(matrix), limits)
    arrays: dict[str, NDArray[np.generic]] = {_MATRIX: float32(_MATRIX, matrix)}
    if any(spec.name == _MASK for spec in manifest.signature.inputs):
        mask = tensors.pop(_MASK, np.ones(len(matrix), np.float32))
        if mask.size != len(matrix):
            raise InputError(f"{_MASK} must have {len(matrix)} values, got {mask.size}; leave it out", field=_MASK)
        arrays[_MASK] = float32(_MASK, mask).reshape(-1)
    if tensors:
        raise InputError(
            f"{_MATRIX} must be sent alone, got {', '.join(sorted(tensors))} with it; leave them out", field="inputs"
        )
    return Encoded(arrays)


def _by_name(tensors: dict[str, NDArray[np.generic]], model: RankingModel, limits: LimitsConfig) -> Encoded:
    """One tensor a feature, [D] or [D, 1]; those that are not sent are missing."""
    lengths = {array.shape[0] if array.ndim in (1, 2) else -1 for array in tensors.values()}
    if len(lengths) != 1 or any(array.size != array.shape[0] for array in tensors.values() if array.ndim == 2):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in tensors.items()) or "none"
        raise InputError(
            f"inputs must be {_MATRIX}, or one tensor a feature of one shape [candidates] or [candidates, 1], got "
            f"{shapes}; send them so",
            field="inputs",
        )
    (n,) = lengths
    if n < 0:
        raise InputError("a feature's tensor must have the shape [candidates] or [candidates, 1]", field="inputs")
    check_number(n, limits)
    columns_ND = [float32(name, array).reshape(-1) for name, array in tensors.items()]
    table = Table(tuple(tensors), np.stack(columns_ND).T)
    return model.encode(RankRequest(ids=("",) * n, features=table))


def _is_binary(request: InferRequest) -> bool:
    for place, output in enumerate(request.outputs or ()):
        if output.name != _SCORE:
            raise InputError(
                f"a ranker gives the tensor {_SCORE} alone, got {output.name!r}; ask for that",
                field=f"outputs[{place}].name",
            )
    asked = [output.parameters.binary_data for output in request.outputs or ()]
    wanted = next((one for one in asked if one is not None), request.parameters.binary_data_output)
    return bool(wanted)

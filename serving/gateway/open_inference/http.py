"""The protocol's JSON, and the raw tensors behind it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from models.errors import InputError
from serving.gateway import wire
from serving.gateway.errors import UnsupportedError
from serving.gateway.open_inference import infer
from serving.gateway.open_inference.schedule import Schedule
from serving.gateway.open_inference.tensors import Tensor, datatype_of, from_raw, from_values, to_raw
from serving.runtime.protocol import ServedModel


class InputParameters(Struct, frozen=True):
    """Of a tensor that was sent; others are passed over, as the protocol says."""

    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class InputTensor(Struct, frozen=True):
    """A tensor that was sent: its `data` here, nested or flat, or `binary_data_size` bytes behind the JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: InputParameters = InputParameters()


class OutputParameters(Struct, frozen=True):
    """Of a tensor that is asked for. classification: how many of its best classes are wanted instead, 0: none."""

    binary_data: bool | None = None
    classification: Annotated[int, Meta(ge=0)] = 0
    shared_memory_region: str | None = None


class OutputTensor(Struct, frozen=True):
    """A tensor that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(Struct, frozen=True):
    """Of the whole request.

    priority: 1 for what somebody waits for, 2 or more for bulk work, 0: not said. timeout: microseconds after which
    nobody waits for the answer any more, 0: not said.
    """

    binary_data_output: bool = False
    priority: int = 0
    timeout: int | None = None


class InferRequest(Struct, frozen=True):
    """The JSON of a request."""

    inputs: list[InputTensor]
    id: str | None = None
    outputs: list[OutputTensor] | None = None
    parameters: RequestParameters = RequestParameters()


class AnsweredTensor(Struct, frozen=True, omit_defaults=True):
    """A tensor that is answered."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}
    data: list[float | str] | None = None


class InferAnswer(Struct, frozen=True):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    outputs: list[AnsweredTensor]
    id: str | UnsetType = UNSET


class InferError(Struct, frozen=True):
    """A refusal, as the protocol has it: one sentence."""

    error: str


_decoder = msgspec.json.Decoder(InferRequest)


def read(body: bytes, header_length: bytes) -> InferRequest:
    """Read a request's JSON; header_length: how many bytes of it there are before the raw tensors, "" for all."""
    return wire.decode(body[: _length(body, header_length)], _decoder)


def schedule(request: InferRequest) -> Schedule:
    """Read how urgent a request is; InputError."""
    return Schedule(request.parameters.priority, request.parameters.timeout or 0)


def tensors(request: InferRequest, body: bytes, header_length: bytes) -> infer.InferRequest:
    """Read a request's tensors; InputError with the place of the one at fault."""
    rest = memoryview(body)[_length(body, header_length) :]
    found: dict[str, Tensor] = {}
    for number, sent in enumerate(request.inputs):
        place = f"inputs[{number}]"
        if sent.name in found:
            raise InputError(f"a tensor must be sent once, got {sent.name!r} twice", field=f"{place}.name")
        expect_no_shared_memory(sent.parameters.shared_memory_region, place)
        size = sent.parameters.binary_data_size
        if (size is None) == (sent.data is None):
            got = "neither" if size is None else "both"
            raise InputError(
                f"{place} must have either data or binary_data_size, got {got}; send one", field=f"{place}.data"
            )
        if size is not None:
            if not 0 <= size <= len(rest):
                raise InputError(
                    f"{place} must have the bytes that it says, got binary_data_size {size} and {len(rest)} bytes; "
                    "send as many",
                    field=f"{place}.parameters.binary_data_size",
                )
            found[sent.name], rest = from_raw(rest[:size], sent.datatype, sent.shape, place), rest[size:]
        elif sent.data is not None:
            found[sent.name] = from_values(sent.data, sent.datatype, sent.shape, place)
    if len(rest):
        raise InputError(f"a body must end with its last tensor, {len(rest)} bytes follow; correct binary_data_size")
    for number, wanted in enumerate(request.outputs or ()):
        place = f"outputs[{number}]"
        expect_no_shared_memory(wanted.parameters.shared_memory_region, place)
    names = None if request.outputs is None else [wanted.name for wanted in request.outputs]
    classes = {wanted.name: wanted.parameters.classification for wanted in request.outputs or ()}
    return infer.InferRequest(found, names, classes)


def write(served: ServedModel, found: Mapping[str, Tensor], request: InferRequest) -> tuple[bytes, int | None]:
    """Write an answer: its body, and how much of it is JSON where tensors follow as bytes."""
    wanted = {output.name: output.parameters.binary_data for output in request.outputs or ()}
    outputs, raws = [], []
    for name, tensor in found.items():
        datatype = datatype_of(tensor)
        declared = (name, datatype, list(tensor.shape))
        is_binary = wanted.get(name)
        if request.parameters.binary_data_output if is_binary is None else is_binary:
            raws.append(to_raw(tensor, datatype))
            outputs.append(AnsweredTensor(*declared, parameters={"binary_data_size": len(raws[-1])}))
        else:
            outputs.append(AnsweredTensor(*declared, data=tensor.ravel().tolist()))
    identity = UNSET if request.id is None else request.id
    header = wire.encode(InferAnswer(served.name, served.version, outputs, identity))
    return b"".join([header, *raws]), len(header) if raws else None


def expect_no_shared_memory(region: str | None, place: str) -> None:
    """Refuse a tensor that lies elsewhere; UnsupportedError."""
    if region:
        raise UnsupportedError(
            f"{place} must travel with the request, this gateway shares no memory, got shared_memory_region "
            f"{region[:40]!r}; send the tensor itself",
            field=place,
        )


def _length(body: bytes, header_length: bytes) -> int:
    if not header_length:
        return len(body)
    if not header_length.isdigit() or int(header_length[:20]) > len(body):
        raise InputError(
            f"Inference-Header-Content-Length must be from 0 to the body's {len(body)} bytes, got "
            f"{header_length[:20].decode('latin-1')}; send the length of the JSON"
        )
    return int(header_length)

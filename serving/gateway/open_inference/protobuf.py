"""The protocol's messages, and the raw tensors in them.

https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as messages

from models.errors import InputError
from serving.gateway.open_inference.http import expect_no_shared_memory
from serving.gateway.open_inference.infer import InferRequest
from serving.gateway.open_inference.schedule import Schedule
from serving.gateway.open_inference.tensors import BYTES, Tensor, datatype_of, from_raw, from_values, n_values, to_raw
from serving.runtime.protocol import ServedModel

_CONTENTS = {
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Where values of a type stand that are not sent as bytes."""


def read(request: Any) -> InferRequest:
    """Read the tensors of a `ModelInferRequest`; InputError with the place of the one at fault."""
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise InputError(
            f"raw_input_contents must be one an input, got {len(raws)} for {len(request.inputs)}; send all tensors so",
            field="raw_input_contents",
        )
    tensors: dict[str, Tensor] = {}
    for number, sent in enumerate(request.inputs):
        place = f"inputs[{number}]"
        if sent.name in tensors:
            raise InputError(f"a tensor must be sent once, got {sent.name!r} twice", field=f"{place}.name")
        expect_no_shared_memory(sent.parameters["shared_memory_region"].string_param, place)
        if raws and sent.HasField("contents"):
            raise InputError(f"{place} must have raw bytes or contents, got both; send one", field=place)
        if raws:
            tensors[sent.name] = from_raw(memoryview(raws[number]), sent.datatype, sent.shape, place)
        else:
            tensors[sent.name] = _from_contents(sent, place)
    classes: dict[str, int] = {}
    for number, wanted in enumerate(request.outputs):
        place = f"outputs[{number}]"
        expect_no_shared_memory(wanted.parameters["shared_memory_region"].string_param, place)
        classes[wanted.name] = _whole(wanted, "classification", f"{place}.parameters")
    names = [wanted.name for wanted in request.outputs] or None
    return InferRequest(tensors, names, classes)


def schedule(request: Any) -> Schedule:
    """Read how urgent a `ModelInferRequest` is; InputError."""
    return Schedule(_whole(request, "priority"), _whole(request, "timeout"))


def write(served: ServedModel, found: Mapping[str, Tensor], identity: str) -> Any:
    """Write a `ModelInferResponse`. identity: the request's."""
    answer = messages.ModelInferResponse(model_name=served.name, model_version=served.version, id=identity)
    for name, tensor in found.items():
        datatype = datatype_of(tensor)
        answer.outputs.add(name=name, datatype=datatype, shape=tensor.shape)
        answer.raw_output_contents.append(to_raw(tensor, datatype))
    return answer


def _whole(sent: Any, name: str, place: str = "parameters") -> int:
    """A parameter of a request, or of its part in `place`, that is a number of 0 or more; 0 where there is none."""
    if name not in sent.parameters:
        return 0
    parameter = sent.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InputError(
            f"{place}.{name} must be an int64_param or uint64_param, got a {kind}; send so", field=f"{place}.{name}"
        )
    value: int = getattr(parameter, kind)
    if value < 0:
        raise InputError(f"{place}.{name} must be 0 or more, got {value}; correct it", field=f"{place}.{name}")
    return value


def _from_contents(sent: Any, place: str) -> Tensor:
    n_values(sent.datatype, sent.shape, place)
    if sent.datatype not in _CONTENTS:
        raise InputError(f"{place} must be sent as raw bytes, its datatype is {sent.datatype}; send so", field=place)
    return from_values(getattr(sent.contents, _CONTENTS[sent.datatype]), sent.datatype, sent.shape, place)

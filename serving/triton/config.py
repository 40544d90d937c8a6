"""`config.pbtxt` of a bundle: one generator for both backends, so that only the `backend` line differs.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.manifest import Signature, TensorSpec
from registry.bundle import Bundle

Backend = Literal["onnxruntime", "python"]

DIGEST = "rankyard.digest"
"""`rankyard.digest.VERSION` is the parameter that says which bundle a version is; the one deployed last comes last."""

VARIANT = "rankyard.variant"
"""The parameter that says which of its variants, where it is not the bundle's own choice."""

# INT8 is slower by an order of magnitude on a GPU (onnxruntime #10267), FP16 on a CPU.
_KINDS = {"float32": "KIND_AUTO", "int8": "KIND_CPU", "fp16": "KIND_GPU"}
_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}
_SHAPE = ("backend:", "input [", "output [", f'parameters {{ key: "{VARIANT}"')
_DEPLOYED = re.compile(
    rf'parameters {{ key: "{re.escape(DIGEST)}\.(?P<version>\d+)" value: {{ string_value: "(?P<digest>\w+)" }} }}'
)
_WARM_TOKENS = 16
_WARM_DOCUMENTS = 32


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """How Triton runs a model.

    backend: `onnxruntime`, as NVIDIA's containers have it, or `python`, which runs ONNX Runtime through `model.py`.
    max_batch_size, max_documents: rows of one batch, texts or documents of several lists; the client splits what is
    larger. max_queue_delay_us: how long Triton may hold a request back to join others to it (microseconds).
    n_instances: copies of the model, each on one thread. variant: `float32`, `int8` or `fp16`, which needs a GPU (None:
    the bundle's own choice).
    """

    backend: Backend = "python"
    max_batch_size: int = 64
    max_documents: int = 8192
    max_queue_delay_us: int = 200
    n_instances: int = 2
    variant: str | None = None


def config_pbtxt(name: str, version: str, bundle: Bundle, settings: TritonSettings, previous: str | None = None) -> str:
    """Write the configuration that serves `version` of `name`, and the version before it where that has its shape.

    Gateways go on asking for the version that they serve until they have followed to this one. previous: the
    configuration that stands; one server configuration holds for all versions, so that the version before can stay only
    where backend, tensors and variant are equal.
    """
    signature = bundle.manifest.signature
    is_rows = signature.layout == "rows"
    max_rows = settings.max_batch_size if is_rows else settings.max_documents
    kind = _KINDS[settings.variant or bundle.variant]
    shape = [
        f"backend: {_quoted(settings.backend)}",
        *(_tensor("input", spec) for spec in signature.inputs),
        *(_tensor("output", spec) for spec in signature.outputs),
        *([_parameter(VARIANT, settings.variant)] if settings.variant else []),
    ]
    served = {**_before(previous or "", shape, version), version: bundle.digest}
    parts = [
        f"name: {_quoted(name)}",
        *shape,
        f"max_batch_size: {max_rows}",
        f"dynamic_batching {{ max_queue_delay_microseconds: {settings.max_queue_delay_us} }}",
        f"instance_group [ {{ kind: {kind} count: {settings.n_instances} }} ]",
        f"version_policy {{ specific {{ versions: [ {', '.join(served)} ] }} }}",
        # A warm-up batch beyond max_batch_size would never end.
        _warmup(signature, 1 if is_rows else min(_WARM_DOCUMENTS, max_rows)),
        _parameter("intra_op_thread_count", "1"),
        _parameter("inter_op_thread_count", "1"),
        *(_parameter(f"{DIGEST}.{number}", digest) for number, digest in served.items()),
    ]
    return "\n".join(parts) + "\n"


def _before(previous: str, shape: Sequence[str], version: str) -> dict[str, str]:
    """The version served before `version`, and its digest: the last one deployed that is another; {} without one."""
    lines = previous.splitlines()
    if [line for line in lines if line.startswith(_SHAPE)] != list(shape):
        return {}
    deployed = {found["version"]: found["digest"] for found in map(_DEPLOYED.fullmatch, lines) if found}
    others = [number for number in deployed if number != version]
    return {number: deployed[number] for number in others[-1:]}


def _tensor(role: str, spec: TensorSpec) -> str:
    """Declare a tensor without its first axis, which Triton counts as the batch; a bare number needs a reshape."""
    dims = spec.shape[1:]
    reshape = "" if dims else " reshape { shape: [ ] }"
    declared = f"name: {_quoted(spec.name)} data_type: {_TYPES[spec.dtype]} dims: {_dims(dims or (1,))}{reshape}"
    return f"{role} [ {{ {declared} }} ]"


def _warmup(signature: Signature, n_rows: int) -> str:
    inputs = " ".join(
        f"inputs {{ key: {_quoted(spec.name)} value: {{ data_type: {_TYPES[spec.dtype]} "
        f"dims: {_dims([_WARM_TOKENS if size < 0 else size for size in spec.shape[1:]])} zero_data: true }} }}"
        for spec in signature.inputs
    )
    return f'model_warmup [ {{ name: "zeros" batch_size: {n_rows} {inputs} }} ]'


def _dims(sizes: Sequence[int]) -> str:
    return "[ " + ", ".join(map(str, sizes)) + " ]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}"


def _quoted(text: str) -> str:
    return json.dumps(text)

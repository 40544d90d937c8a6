"""`config.pbtxt` of a bundle: one generator for both backends, so that only the `backend` line differs.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.manifest import Signature, TensorSpec
from registry.bundle import Bundle

Backend = Literal["onnxruntime", "python"]

DIGEST = "rankyard.digest"
"""The parameter that says which bundle is served."""

VARIANT = "rankyard.variant"
"""The parameter that says which of its variants, where it is not the bundle's own choice."""

# INT8 is slower by an order of magnitude on a GPU (onnxruntime #10267), FP16 on a CPU.
_KINDS = {"float32": "KIND_AUTO", "int8": "KIND_CPU", "fp16": "KIND_GPU"}
_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}
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


def config_pbtxt(name: str, version: str, bundle: Bundle, settings: TritonSettings) -> str:
    """Write the configuration that serves exactly `version` of `name`."""
    signature = bundle.manifest.signature
    is_rows = signature.layout == "rows"
    max_rows = settings.max_batch_size if is_rows else settings.max_documents
    kind = _KINDS[settings.variant or bundle.variant]
    parts = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(settings.backend)}",
        f"max_batch_size: {max_rows}",
        *(_tensor("input", spec) for spec in signature.inputs),
        *(_tensor("output", spec) for spec in signature.outputs),
        f"dynamic_batching {{ max_queue_delay_microseconds: {settings.max_queue_delay_us} }}",
        f"instance_group [ {{ kind: {kind} count: {settings.n_instances} }} ]",
        f"version_policy {{ specific {{ versions: [ {version} ] }} }}",
        # A warm-up batch beyond max_batch_size would never end.
        _warmup(signature, 1 if is_rows else min(_WARM_DOCUMENTS, max_rows)),
        _parameter("intra_op_thread_count", "1"),
        _parameter("inter_op_thread_count", "1"),
        _parameter(DIGEST, bundle.digest),
        *([_parameter(VARIANT, settings.variant)] if settings.variant else []),
    ]
    return "\n".join(parts) + "\n"


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

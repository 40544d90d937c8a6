"""`config.pbtxt` of a bundle: one generator for both backends, so that only the `backend` line differs.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from models.manifest import Signature, TensorSpec
from registry.bundle import VARIANTS, Bundle

Backend = Literal["onnxruntime", "python"]

DIGEST = "rankyard.digest"
_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """How Triton runs a model.

    max_rows: rows of one batch, texts or documents of several lists; larger requests are split by the client.
    max_queue_delay_us: how long Triton may hold a request back to join others to it (microseconds).
    n_instances: copies of the model, each on one thread.
    """

    backend: Backend = "python"
    max_batch_size: int = 64
    max_documents: int = 8192
    max_queue_delay_us: int = 200
    n_instances: int = 2

    def max_rows(self, signature: Signature) -> int:
        """Triton's `max_batch_size` for a layout: rows are texts under `rows`, documents under `concat`."""
        return self.max_batch_size if signature.layout == "rows" else self.max_documents


def config_pbtxt(name: str, version: str, bundle: Bundle, settings: TritonSettings) -> str:
    """Write the configuration that serves exactly `version` of `name`."""
    signature = bundle.manifest.signature
    variant = bundle.variant
    # INT8 is slower by an order of magnitude on a GPU (onnxruntime #10267), so that it stays on the CPU.
    kind = "KIND_CPU" if variant == "int8" or settings.backend == "python" else "KIND_AUTO"
    warm_rows = 1 if signature.layout == "rows" else min(32, settings.max_documents)
    parts = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(settings.backend)}",
        f"max_batch_size: {settings.max_rows(signature)}",
        f"default_model_filename: {_quoted(_model_filename(variant, settings.backend))}",
        *(_tensor("input", spec) for spec in signature.inputs),
        *(_tensor("output", spec) for spec in signature.outputs),
        f"dynamic_batching {{ max_queue_delay_microseconds: {settings.max_queue_delay_us} }}",
        f"instance_group [ {{ kind: {kind} count: {settings.n_instances} }} ]",
        f"version_policy {{ specific {{ versions: [ {version} ] }} }}",
        _warmup(signature, warm_rows),
        _parameter("intra_op_thread_count", "1"),
        _parameter("inter_op_thread_count", "1"),
        _parameter(DIGEST, bundle.digest),
        _parameter("rankyard.model_file", VARIANTS[variant]),
    ]
    return "\n".join(parts) + "\n"


def _model_filename(variant: str, backend: Backend) -> str:
    return "model.py" if backend == "python" else VARIANTS[variant]


def _tensor(role: str, spec: TensorSpec) -> str:
    """Declare a tensor without its first axis, which Triton counts as the batch; a bare number needs a reshape."""
    dims = list(spec.shape[1:])
    reshape = "" if dims else " reshape { shape: [ ] }"
    declared = f"name: {_quoted(spec.name)} data_type: {_TYPES[spec.dtype]} dims: {_dims(dims or [1])}{reshape}"
    return f"{role} [ {{ {declared} }} ]"


def _warmup(signature: Signature, rows: int) -> str:
    inputs = " ".join(
        f"inputs {{ key: {_quoted(spec.name)} value: {{ data_type: {_TYPES[spec.dtype]} "
        f"dims: {_dims([_WARM_LENGTH if size < 0 else size for size in spec.shape[1:]])} zero_data: true }} }}"
        for spec in signature.inputs
    )
    return f'model_warmup [ {{ name: "zeros" batch_size: {rows} {inputs} }} ]'


_WARM_LENGTH = 16
"""Tokens of the text that warms an instance up."""


def _dims(sizes: list[int]) -> str:
    return "[ " + ", ".join(map(str, sizes)) + " ]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}"


def _quoted(text: str) -> str:
    return json.dumps(text)

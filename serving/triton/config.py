"""`config.pbtxt` of a bundle: one generator for both backends, so that only the `backend` line differs.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from models.errors import InputError
from models.manifest import Manifest, Signature, TensorSpec
from registry.bundle import Bundle
from serving.triton import warmup
from serving.triton.settings import Scheduling, TritonSettings

DIGEST = "rankyard.digest"
"""`rankyard.digest.VERSION` is the parameter that says which bundle a version is; the one deployed last comes last."""

VARIANT = "rankyard.variant"
"""The parameter that says which of its variants, where it is not the bundle's own choice."""

PRECISION = "rankyard.precision"
"""The parameter that says in which precision TensorRT runs it, where it does."""

# INT8 is slower by an order of magnitude on a GPU (onnxruntime #10267), FP16 on a CPU.
_KINDS = {"float32": "KIND_AUTO", "int8": "KIND_CPU", "fp16": "KIND_GPU"}
_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}
_SHAPE = ("backend:", "input [", "output [", *(f'parameters {{ key: "{key}"' for key in (VARIANT, PRECISION)))
_DEPLOYED = re.compile(
    rf'parameters {{ key: "{re.escape(DIGEST)}\.(?P<version>\d+)" value: {{ string_value: "(?P<digest>\w+)" }} }}'
)
_WARM_DOCUMENTS = 32
_TENSORRT_WORKSPACE_BYTES = 1 << 30
_USUAL_SHARE = 4
"""TensorRT chooses its kernels for batches of a quarter of the largest size, in both directions."""


def config_pbtxt(name: str, version: str, bundle: Bundle, settings: TritonSettings, previous: str | None = None) -> str:
    """Write the configuration that serves `version` of `name`, and the version before it where that has its shape.

    Gateways go on asking for the version that they serve until they have followed to this one. previous: the
    configuration that stands; one server configuration holds for all versions, so that the version before can stay only
    where backend, tensors, variant and precision are equal. InputError where the settings do not fit the bundle.
    """
    signature = bundle.manifest.signature
    is_rows = signature.layout == "rows"
    max_rows = largest_batch(signature, settings)
    _expect_fit(bundle, settings, max_rows)
    shape = [
        f"backend: {_quoted(settings.backend)}",
        *(_tensor("input", spec) for spec in signature.inputs),
        *(_tensor("output", spec) for spec in signature.outputs),
        *([_parameter(VARIANT, settings.variant)] if settings.variant else []),
        *([_parameter(PRECISION, settings.tensorrt)] if settings.tensorrt else []),
    ]
    served = {**_before(previous or "", shape, version), version: bundle.digest}
    parts = [
        f"name: {_quoted(name)}",
        *shape,
        f"max_batch_size: {max_rows}",
        _batching(settings),
        _instances(settings, settings.variant or bundle.variant),
        *([_tensorrt(settings.tensorrt, bundle.manifest, max_rows)] if settings.tensorrt else []),
        f"version_policy {{ specific {{ versions: [ {', '.join(served)} ] }} }}",
        # A warm-up batch beyond max_batch_size would never end.
        _warmup(bundle, version, 1 if is_rows else min(_WARM_DOCUMENTS, max_rows)),
        _parameter("intra_op_thread_count", str(settings.n_threads)),
        _parameter("inter_op_thread_count", "1"),
        *(_parameter(f"{DIGEST}.{number}", digest) for number, digest in served.items()),
    ]
    return "\n".join(parts) + "\n"


def largest_batch(signature: Signature, settings: TritonSettings) -> int:
    """Rows of the largest batch: texts, or documents of several lists."""
    return settings.max_batch_size if signature.layout == "rows" else settings.max_documents


def _expect_fit(bundle: Bundle, settings: TritonSettings, max_rows: int) -> None:
    manifest, sizes = bundle.manifest, settings.preferred_batch_sizes
    if sizes and sizes[-1] > max_rows:
        raise InputError(f"preferred_batch_sizes must be at most {max_rows} rows for {manifest.name}, got {sizes[-1]}")
    if settings.needs_gpu and (settings.variant or bundle.variant) == "int8":
        raise InputError(
            f"the variant int8, which {manifest.name} chose for itself, must stay on a CPU; "
            "give --variant float32 or fp16 for a GPU"
        )
    if settings.tensorrt is None:
        return
    if _most_tokens(manifest) is None:
        raise InputError(
            f"tensorrt is for networks that read at most so many tokens, {manifest.name} reads numbers; leave it out"
        )
    if settings.tensorrt == "fp16" and manifest.fp16_tolerance is None:
        raise InputError(
            f"what tensorrt answers in fp16 is proved within fp16_tolerance, the bundle of {manifest.name} has none; "
            "train it with quantize.fp16: true, or give --tensorrt fp32"
        )


def _batching(scheduling: Scheduling) -> str:
    sizes = scheduling.preferred_batch_sizes
    preferred = f"preferred_batch_size: {_dims(sizes)} " if sizes else ""
    return f"dynamic_batching {{ {preferred}max_queue_delay_microseconds: {scheduling.max_queue_delay_us} }}"


def _instances(settings: TritonSettings, variant: str) -> str:
    kind = "KIND_GPU" if settings.needs_gpu else _KINDS[variant]
    gpus = f" gpus: {_dims(settings.gpus)}" if settings.gpus else ""
    return f"instance_group [ {{ kind: {kind} count: {settings.n_instances}{gpus} }} ]"


def _tensorrt(precision: str, manifest: Manifest, max_rows: int) -> str:
    """Let TensorRT compile the network once, for every shape that it may be asked.

    Without the three profiles each new shape would compile it anew, while a request waits.
    https://github.com/triton-inference-server/onnxruntime_backend#onnx-runtime-with-tensorrt-optimization
    """
    most_tokens = _most_tokens(manifest) or 1
    profiles = {
        "min": (1, 1),
        "opt": (max(1, max_rows // _USUAL_SHARE), max(1, most_tokens // _USUAL_SHARE)),
        "max": (max_rows, most_tokens),
    }
    parameters = {
        "precision_mode": precision.upper(),
        "max_workspace_size_bytes": str(_TENSORRT_WORKSPACE_BYTES),
        "trt_engine_cache_enable": "1",
        **{f"trt_profile_{name}_shapes": _profile(manifest.signature, *sizes) for name, sizes in profiles.items()},
    }
    given = " ".join(f"parameters {{ key: {_quoted(key)} value: {_quoted(v)} }}" for key, v in parameters.items())
    accelerator = f'gpu_execution_accelerator [ {{ name: "tensorrt" {given} }} ]'
    return f"optimization {{ execution_accelerators {{ {accelerator} }} }}"


def _profile(signature: Signature, n_rows: int, n_tokens: int) -> str:
    """Shapes of all inputs, as TensorRT reads them: `input_ids:64x128,attention_mask:64x128`."""
    return ",".join(
        f"{spec.name}:{'x'.join(map(str, [n_rows, *(n_tokens if size < 0 else size for size in spec.shape[1:])]))}"
        for spec in signature.inputs
    )


def _most_tokens(manifest: Manifest) -> int | None:
    """Tokens of the longest row; None for a model that reads numbers, or n-grams without a bound."""
    text = manifest.pair_text or manifest.text
    return getattr(text, "max_tokens", None)


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


def _warmup(bundle: Bundle, version: str, n_rows: int) -> str:
    types = {spec.name: _TYPES[spec.dtype] for spec in bundle.manifest.signature.inputs}
    inputs = " ".join(
        f"inputs {{ key: {_quoted(name)} value: {{ data_type: {types[name]} dims: {_dims(array.shape)} "
        f"input_data_file: {_quoted(warmup.file_of(version, name))} }} }}"
        for name, array in warmup.row(bundle).items()
    )
    return f'model_warmup [ {{ name: "golden" batch_size: {n_rows} {inputs} }} ]'


def _dims(sizes: Sequence[int]) -> str:
    return "[ " + ", ".join(map(str, sizes)) + " ]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}"


def _quoted(text: str) -> str:
    return json.dumps(text)

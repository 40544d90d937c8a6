"""What the gateway says of itself and of its models, as a Triton server would.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_configuration.md
"""

from __future__ import annotations

from importlib import metadata

from msgspec import Struct

from models.manifest import TensorSpec
from serving.gateway import batcher
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane
from serving.gateway.open_inference import schedule
from serving.gateway.open_inference.tensors import DATATYPES
from serving.gateway.statistics import BatchStatistics, InferenceStatistics
from serving.gateway.statistics import ModelStatistics as Totals
from serving.runtime.protocol import ServedModel
from serving.triton.config import DIGEST

_EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
_READY = "READY"


class ServerMetadata(Struct, frozen=True):
    """GET /v2."""

    name: str
    version: str
    extensions: tuple[str, ...]


class TensorMetadata(Struct, frozen=True):
    """What a model takes or gives; -1: any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct, frozen=True):
    """GET /v2/models/NAME."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfigTensor(Struct, frozen=True):
    """A tensor without its first axis, which is the batch."""

    name: str
    data_type: str
    dims: list[int]


class DynamicBatching(Struct, frozen=True):
    """How requests join: in batches of up to this size, those of priority 1 before the rest."""

    preferred_batch_size: list[int]
    priority_levels: int
    default_priority_level: int


class InstanceGroup(Struct, frozen=True):
    """How many batches run at once, of all models together."""

    name: str
    kind: str
    count: int


class Parameter(Struct, frozen=True):
    """A value of `parameters`."""

    string_value: str


class ModelConfiguration(Struct, frozen=True):
    """GET /v2/models/NAME/config: what of Triton's configuration holds here too."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, dict[str, list[int]]]
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    dynamic_batching: DynamicBatching
    instance_group: list[InstanceGroup]
    parameters: dict[str, Parameter]


class IndexEntry(Struct, frozen=True):
    """A model that is served, as POST /v2/repository/index lists it."""

    name: str
    version: str
    state: str


class ModelStatistics(Struct, frozen=True):
    """A model in GET /v2/models/stats. last_inference: milliseconds since 1970."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


class Statistics(Struct, frozen=True):
    """GET /v2/models/stats, and the same of one model."""

    model_stats: list[ModelStatistics]


def server() -> ServerMetadata:
    """Say who answers, and which extensions of the protocol it knows."""
    return ServerMetadata("rankyard", metadata.version("rankyard"), _EXTENSIONS)


def model(served: ServedModel, dataplane: Dataplane) -> ModelMetadata:
    """What the model takes and gives, as its Triton configuration declares it, and its versions that are served."""
    signature = served.bundle.manifest.signature
    versions = [other.version for other in dataplane.roles.models.values() if other.name == served.name]
    inputs, outputs = (
        [TensorMetadata(spec.name, DATATYPES[spec.dtype], [-1, *_dims(spec)]) for spec in specs]
        for specs in (signature.inputs, signature.outputs)
    )
    return ModelMetadata(served.name, versions, "onnxruntime_onnx", inputs, outputs)


def configuration(served: ServedModel, dataplane: Dataplane, config: GatewayConfig) -> ModelConfiguration:
    """How the gateway batches the model."""
    manifest = served.bundle.manifest
    inputs, outputs = (
        [ConfigTensor(spec.name, f"TYPE_{DATATYPES[spec.dtype]}", _dims(spec)) for spec in specs]
        for specs in (manifest.signature.inputs, manifest.signature.outputs)
    )
    is_ranking = manifest.family == "ranking"
    return ModelConfiguration(
        name=served.name,
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        version_policy={"specific": {"versions": [int(served.version)] if served.version.isdigit() else []}},
        max_batch_size=config.limits.max_candidates if is_ranking else config.limits.max_queries,
        input=inputs,
        output=outputs,
        dynamic_batching=DynamicBatching([config.batch.max_batch_size], len(batcher.PRIORITIES), schedule.HIGHEST),
        instance_group=[InstanceGroup(f"{served.name}_0", "KIND_CPU", dataplane.n_workers)],
        parameters={f"{DIGEST}.{served.version}": Parameter(served.bundle.digest)},
    )


def index(dataplane: Dataplane) -> list[IndexEntry]:
    """Every model that is served; one that is not ready is not among them."""
    return [IndexEntry(served.name, served.version, _READY) for served in dataplane.roles.models.values()]


def statistics(dataplane: Dataplane, name: str | None = None, version: str | None = None) -> Statistics:
    """What the models named, or all, were asked and took since they are served; NotFoundError."""
    models = dataplane.roles.models.values() if name is None else [dataplane.find(name, version)[0]]
    return Statistics([_statistics(served, dataplane.series(served).statistics) for served in models])


def _statistics(served: ServedModel, found: Totals) -> ModelStatistics:
    batches = [found.batches[size] for size in sorted(found.batches)]
    return ModelStatistics(
        served.name, served.version, found.last_ms, found.n_rows, found.n_batches, found.inference, batches
    )


def _dims(spec: TensorSpec) -> list[int]:
    return list(spec.shape[1:] or (1,))

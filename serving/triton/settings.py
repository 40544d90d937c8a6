"""How Triton runs a model: what `rankyard deploy` is asked for, and what `rankyard tune triton` finds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.config import Config

Backend = Literal["onnxruntime", "python"]
VariantName = Literal["float32", "int8", "fp16"]
Precision = Literal["fp32", "fp16"]
Count = Annotated[int, Field(ge=1)]


class Scheduling(Config):
    """How requests become batches, and on what those run; no answer depends on it.

    max_queue_delay_us: how long Triton may hold a request back to join others to it. preferred_batch_sizes: rows at
    which it sends a batch off before that; none: when it is full. n_instances: copies of the model (on each GPU, where
    there are several). n_threads: of each copy, on a CPU.
    """

    max_queue_delay_us: Annotated[int, Field(ge=0, le=10_000_000)] = 200
    preferred_batch_sizes: tuple[Count, ...] = ()
    n_instances: Count = 2
    n_threads: Count = 1

    @model_validator(mode="after")
    def _sizes_rise(self) -> Self:
        if list(self.preferred_batch_sizes) != sorted(set(self.preferred_batch_sizes)):
            raise ValueError("preferred_batch_sizes must rise, each once")
        return self

    def scheduling(self) -> Scheduling:
        """Give these fields alone."""
        return Scheduling(**{name: getattr(self, name) for name in Scheduling.model_fields})


class TritonSettings(Scheduling):
    """How Triton runs a model.

    backend: `onnxruntime`, as NVIDIA's containers have it, or `python`, which runs ONNX Runtime through `model.py`.
    max_batch_size, max_documents: rows of one batch, texts or documents of several lists; the client splits what is
    larger. variant: which of the bundle's networks (None: its own choice); `fp16` needs a GPU. gpus: their numbers
    (None: where the variant belongs). tensorrt: lets TensorRT run the network on a GPU, in this precision.
    """

    backend: Backend = "python"
    max_batch_size: Count = 64
    max_documents: Count = 8192
    variant: VariantName | None = None
    gpus: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    tensorrt: Precision | None = None

    @property
    def needs_gpu(self) -> bool:
        """Whether no CPU can run it."""
        return self.gpus is not None or self.tensorrt is not None or self.variant == "fp16"

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.needs_gpu and self.backend == "python":
            raise ValueError(
                "gpus, tensorrt and the variant fp16 need the backend onnxruntime, python runs on a CPU; "
                "give --backend onnxruntime"
            )
        if self.needs_gpu and self.variant == "int8":
            raise ValueError(
                "the variant int8 must stay on a CPU, where it is fast (on a GPU it takes ten times as long); "
                "give --variant float32 or fp16"
            )
        if self.tensorrt is not None and self.variant == "fp16":
            raise ValueError(
                "tensorrt must be given the variant float32, whose precision it chooses itself; "
                "give --variant float32 --tensorrt fp16"
            )
        if self.needs_gpu and "n_threads" in self.model_fields_set and self.n_threads > 1:
            raise ValueError("n_threads does nothing on a GPU; leave it out")
        return self

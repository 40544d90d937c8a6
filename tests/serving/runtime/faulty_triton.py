"""A real gRPC server that speaks Triton's protocol and misbehaves as told: faults that a real one cannot be made to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from models.session import OnnxSession
from serving.runtime.protocol import ServedModel
from serving.triton.config import DIGEST
from serving.triton.tensors import DATATYPES

TYPES = {wire: np.dtype(name) for name, wire in DATATYPES.items()}
NAMES = {np.dtype(name): wire for name, wire in DATATYPES.items()} | {np.dtype("float64"): "FP64"}

Outputs = dict[str, np.ndarray]


class FaultyTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers `model` rightly until it has a fault.

    change: makes other outputs of the right ones. truncate: leaves the last byte of an answer out. status: fails with
    it. delay: is awaited, with the number of the request, before each answer. n_asked, n_given_up: requests, and those
    whose caller cancelled.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._session = OnnxSession(model.bundle.model_file("float32"))
        self.heal()
        self.n_asked = self.n_given_up = 0

    def heal(self) -> None:
        self.change: Callable[[Outputs], Outputs] | None = None
        self.truncate = False
        self.status: grpc.StatusCode | None = None
        self.delay = None

    async def ModelConfig(self, request, context):  # noqa: N802, ARG002
        parameter = model_config_pb2.ModelParameter(string_value=self._model.bundle.digest)
        config = model_config_pb2.ModelConfig(max_batch_size=1024)
        config.parameters[f"{DIGEST}.{self._model.version}"].CopyFrom(parameter)
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelInfer(self, request, context):  # noqa: N802
        self.n_asked += 1
        if self.status is not None:
            await context.abort(self.status, "told to fail")
        if self.delay is not None:
            try:
                await self.delay(self.n_asked)
            except asyncio.CancelledError:
                self.n_given_up += 1
                raise
        inputs = {
            tensor.name: np.frombuffer(content, TYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        outputs = {
            name: array if array.ndim > 1 else array[:, None] for name, array in self._session.run(inputs).items()
        }
        answer = service_pb2.ModelInferResponse(model_name=self._model.name)
        for name, array in (outputs if self.change is None else self.change(outputs)).items():
            answer.outputs.add(name=name, datatype=NAMES[array.dtype], shape=array.shape)
            content = array.tobytes()
            answer.raw_output_contents.append(content[: len(content) - self.truncate])
        return answer


@contextlib.asynccontextmanager
async def faulty_triton(model: ServedModel) -> AsyncIterator[tuple[FaultyTriton, str]]:
    """A server on a port of its own, and its HOST:PORT."""
    servicer, server = FaultyTriton(model), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)

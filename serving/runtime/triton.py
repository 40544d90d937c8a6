"""The Triton runtime: batches go to a server over gRPC, one connection for all models.

Of Triton's own client the messages alone are used: its objects for tensors and calls are made anew for each request,
which a lone one waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import cached_property
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services
from tritonclient.utils import triton_to_np_dtype

from models.batch import Arrays
from models.errors import DeadlineError, NotFoundError, RankyardError, UnavailableError
from registry import golden
from serving.runtime.protocol import ServedModel, trace_context
from serving.triton.config import DIGEST, PRECISION, VARIANT
from serving.triton.tensors import DATATYPES, as_declared, batches, joined

Headers = tuple[tuple[str, str], ...]

_LOAD_TIMEOUT_S = 30.0
_MAX_BYTES = 2**31 - 1
_OPTIONS = [
    ("grpc.max_send_message_length", _MAX_BYTES),
    ("grpc.max_receive_message_length", _MAX_BYTES),
    ("grpc.enable_http_proxy", 0),
    # gRPC by itself would wait up to two minutes to connect again, long after the server is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class TritonRuntime:
    """Runs batches on a Triton server that `rankyard deploy` has filled; belongs to the event loop of its first call.

    url: HOST:PORT of its gRPC endpoint. n_workers: batches in flight at once; the server's own queue takes over there.
    """

    def __init__(self, url: str, n_workers: int = 4) -> None:
        self.n_workers = n_workers
        self.n_ahead = 0
        self.is_degraded = False
        self._url = url.removeprefix("grpc://")
        self._max_rows: dict[str, int] = {}

    async def load(self, model: ServedModel) -> None:
        """Expect this very bundle on the server, and prove it on its golden rows.

        UnavailableError: no server. DeadlineError: a silent one. NotFoundError: not deployed, or another bundle.
        ParityError: other answers.
        """
        config = await self._config(model)
        digest = config.parameters[f"{DIGEST}.{model.version}"].string_value
        if digest != model.bundle.digest:
            raise NotFoundError(
                f"Triton at {self._url} must serve the bundle {model.bundle.digest[:12]} as {model.ref}, it has "
                f"{digest[:12] or 'another model'}; run `rankyard deploy {model.name}`"
            )
        max_rows = config.max_batch_size
        loop = asyncio.get_running_loop()

        def run(arrays: Arrays) -> Arrays:
            return asyncio.run_coroutine_threadsafe(self._run(model, arrays, max_rows, _LOAD_TIMEOUT_S), loop).result()

        variant = config.parameters[VARIANT].string_value or model.bundle.variant
        precision = config.parameters[PRECISION].string_value or variant
        tolerance = model.bundle.manifest.tolerance_of(precision)
        await asyncio.to_thread(golden.check, model.bundle, variant, run, tolerance)
        self._max_rows[model.bundle.digest] = max_rows

    async def infer(
        self, model: ServedModel, inputs: Arrays, *, timeout_s: float, lone_s: float | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """Run one batch, in parts where it is larger than the server takes; DeadlineError after `timeout_s`."""
        del lone_s  # the server decides itself
        max_rows = self._max_rows.get(model.bundle.digest)
        if max_rows is None:
            raise UnavailableError(
                f"{model.ref} must be loaded before it runs, the runtime is without it; start it again"
            )
        return await self._run(model, inputs, max_rows, timeout_s, _headers(trace_context.get()))

    async def close(self) -> None:
        """Close the connection."""
        self._max_rows.clear()
        if "_channel" in vars(self):
            await self._channel.close()

    @cached_property
    def _channel(self) -> Any:
        # Made on first use: a connection belongs to the event loop that runs when it is made.
        return grpc.aio.insecure_channel(self._url, _OPTIONS)

    @cached_property
    def _server(self) -> Any:
        return services.GRPCInferenceServiceStub(self._channel)

    async def _config(self, model: ServedModel) -> Any:
        request = messages.ModelConfigRequest(name=model.name, version=model.version)
        call = self._server.ModelConfig(request, timeout=_LOAD_TIMEOUT_S)
        return (await self._called(call, model, _LOAD_TIMEOUT_S)).config

    async def _run(
        self, model: ServedModel, inputs: Arrays, max_rows: int, timeout_s: float, headers: Headers = ()
    ) -> dict[str, NDArray[np.generic]]:
        parts = batches(inputs, max_rows)
        if len(parts) == 1:
            return await self._infer(model, parts[0], timeout_s, headers)
        return joined(await asyncio.gather(*(self._infer(model, part, timeout_s, headers) for part in parts)))

    async def _infer(
        self, model: ServedModel, arrays: Arrays, timeout_s: float, headers: Headers
    ) -> dict[str, NDArray[np.generic]]:
        call = self._server.ModelInfer(_request(model, arrays), timeout=timeout_s, metadata=headers)
        answer = await self._called(call, model, timeout_s)
        try:
            outputs = _outputs(answer)
        except ValueError as error:  # bytes that are not those of the shape
            raise RankyardError(
                f"Triton must answer {model.ref} with whole tensors, got: {error}; restart it"
            ) from error
        return as_declared(outputs, arrays, model.bundle.manifest.signature)

    async def _called(self, call: Awaitable[Any], model: ServedModel, timeout_s: float) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, model, timeout_s) from error

    def _translated(self, error: grpc.aio.AioRpcError, model: ServedModel, timeout_s: float) -> RankyardError:
        status, reason = error.code(), " ".join((error.details() or "").split())
        if status == grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(
                f"{model.ref} must answer within {timeout_s * 1e3:.0f} ms, it did not; allow more time or send less"
            )
        if status == grpc.StatusCode.NOT_FOUND or "unknown model" in reason or "not found" in reason:
            return NotFoundError(
                f"Triton at {self._url} must have {model.ref}, got: {reason}; run `rankyard deploy {model.name}`"
            )
        if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return UnavailableError(
                f"a Triton server must answer on {self._url}, got: {reason}; start one with `rankyard triton up`"
            )
        return RankyardError(f"Triton failed on {model.ref}: {reason}")


def _request(model: ServedModel, arrays: Arrays) -> Any:
    """Write every tensor as its bytes."""
    tensors = [(spec, arrays[spec.name]) for spec in model.bundle.manifest.signature.inputs]
    return messages.ModelInferRequest(
        model_name=model.name,
        model_version=model.version,
        inputs=[
            messages.ModelInferRequest.InferInputTensor(
                name=spec.name, datatype=DATATYPES[spec.dtype], shape=array.shape
            )
            for spec, array in tensors
        ],
        raw_input_contents=[array.tobytes() for _, array in tensors],
    )


def _outputs(answer: Any) -> dict[str, NDArray[np.generic]]:
    """Read every tensor; ValueError where its bytes are not those of the shape."""
    return {
        output.name: np.frombuffer(raw, triton_to_np_dtype(output.datatype)).reshape(output.shape)
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def _headers(context: tuple[str, str] | None) -> Headers:
    """Metadata that carries on the trace of a request: https://www.w3.org/TR/trace-context."""
    if context is None:
        return ()
    traceparent, state = context
    return (("traceparent", traceparent), *((("tracestate", state),) if state else ()))

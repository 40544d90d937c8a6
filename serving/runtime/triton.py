"""The Triton runtime: batches go to a server over gRPC, one connection for all models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import cached_property
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from models.batch import Arrays
from models.errors import DeadlineError, NotFoundError, RankyardError, UnavailableError
from registry import golden
from serving.runtime.protocol import ServedModel
from serving.triton.config import DIGEST, VARIANT
from serving.triton.tensors import DATATYPES, as_declared, batches, joined

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
        self.is_degraded = False
        self._url = url.removeprefix("grpc://")
        self._max_rows: dict[str, int] = {}

    async def load(self, model: ServedModel) -> None:
        """Expect this very bundle on the server, and prove it on its golden rows.

        UnavailableError: no server. DeadlineError: a silent one. NotFoundError: not deployed, or another bundle.
        ParityError: other answers.
        """
        config = await self._config(model)
        digest = config.get("parameters", {}).get(f"{DIGEST}.{model.version}", {}).get("string_value", "")
        if digest != model.bundle.digest:
            raise NotFoundError(
                f"Triton at {self._url} must serve the bundle {model.bundle.digest[:12]} as {model.ref}, it has "
                f"{digest[:12] or 'another model'}; run `rankyard deploy {model.name}`"
            )
        max_rows = int(config["max_batch_size"])
        loop = asyncio.get_running_loop()

        def run(arrays: Arrays) -> Arrays:
            return asyncio.run_coroutine_threadsafe(self._run(model, arrays, max_rows, _LOAD_TIMEOUT_S), loop).result()

        variant = config["parameters"].get(VARIANT, {}).get("string_value") or model.bundle.variant
        await asyncio.to_thread(golden.check, model.bundle, variant, run)
        self._max_rows[model.bundle.digest] = max_rows

    async def infer(self, model: ServedModel, inputs: Arrays, *, timeout_s: float) -> dict[str, NDArray[np.generic]]:
        """Run one batch, in parts where it is larger than the server takes; DeadlineError after `timeout_s`."""
        max_rows = self._max_rows.get(model.bundle.digest)
        if max_rows is None:
            raise UnavailableError(
                f"{model.ref} must be loaded before it runs, the runtime is without it; start it again"
            )
        return await self._run(model, inputs, max_rows, timeout_s)

    async def close(self) -> None:
        """Close the connection."""
        self._max_rows.clear()
        if "_client" in vars(self):
            await self._client.close()

    @cached_property
    def _client(self) -> Any:
        # Made on first use: a connection belongs to the event loop that runs when it is made.
        return triton.InferenceServerClient(self._url, channel_args=_OPTIONS)

    async def _config(self, model: ServedModel) -> dict[str, Any]:
        request = self._client.get_model_config(model.name, model.version, as_json=True, client_timeout=_LOAD_TIMEOUT_S)
        config: dict[str, Any] = (await self._call(request, model, _LOAD_TIMEOUT_S))["config"]
        return config

    async def _run(
        self, model: ServedModel, inputs: Arrays, max_rows: int, timeout_s: float
    ) -> dict[str, NDArray[np.generic]]:
        parts = [self._infer(model, part, timeout_s) for part in batches(inputs, max_rows)]
        return joined([await parts[0]] if len(parts) == 1 else await asyncio.gather(*parts))

    async def _infer(self, model: ServedModel, arrays: Arrays, timeout_s: float) -> dict[str, NDArray[np.generic]]:
        signature = model.bundle.manifest.signature
        tensors = []
        for spec in signature.inputs:
            array = arrays[spec.name]
            tensor = triton.InferInput(spec.name, list(array.shape), DATATYPES[spec.dtype])
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            tensors.append(tensor)
        request = self._client.infer(model.name, tensors, model.version, client_timeout=timeout_s)
        answer = await self._call(request, model, timeout_s)
        return as_declared({spec.name: answer.as_numpy(spec.name) for spec in signature.outputs}, signature)

    async def _call(self, request: Awaitable[Any], model: ServedModel, timeout_s: float) -> Any:
        try:
            return await request
        except InferenceServerException as error:
            raise self._translated(error, model, timeout_s) from error

    def _translated(self, error: InferenceServerException, model: ServedModel, timeout_s: float) -> RankyardError:
        status, reason = error.status() or "", " ".join(error.message().split())
        if "DEADLINE_EXCEEDED" in status:
            return DeadlineError(
                f"{model.ref} must answer within {timeout_s * 1e3:.0f} ms, it did not; allow more time or send less"
            )
        if "NOT_FOUND" in status or "unknown model" in reason or "not found" in reason:
            return NotFoundError(
                f"Triton at {self._url} must have {model.ref}, got: {reason}; run `rankyard deploy {model.name}`"
            )
        if "UNAVAILABLE" in status or "CANCELLED" in status:
            return UnavailableError(
                f"a Triton server must answer on {self._url}, got: {reason}; start one with `rankyard triton up`"
            )
        return RankyardError(f"Triton failed on {model.ref}: {reason}")

"""The protocol over gRPC: what a stock `tritonclient.grpc` may ask.

Imported where a gateway has a `grpc_port` alone: gRPC takes 16 MB.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio
import msgspec
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import model_config_pb2 as model_config
from tritonclient.grpc import service_pb2 as messages

from models.errors import NotFoundError, OverloadedError, RankyardError
from serving.gateway import batcher
from serving.gateway.app import App, deadline_ms_of, priority_of
from serving.gateway.config import GatewayConfig
from serving.gateway.errors import FAILED, MalformedMessageError, UnsupportedError
from serving.gateway.messages import Request
from serving.gateway.observer import Observer
from serving.gateway.open_inference import describe, protobuf
from serving.gateway.open_inference.infer import infer
from serving.gateway.open_inference.routes import NO_CONTROL
from serving.gateway.port import grpc_taken

_SERVICE = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_OK, _HUNG_UP = 200, 499
_STREAMED_AT_ONCE = 16
"""Requests of one stream that are worked on together."""

_log = logging.getLogger("rankyard.gateway")

Context = Any
Metadata = tuple[tuple[str, str], ...]
Call = Callable[[Any, "_Watched"], Awaitable[Message]]


class GrpcServer:
    """Answers calls with the application's models; belongs to one event loop.

    A call has as long as its client gives it, by gRPC's own deadline or by `x-deadline-ms` in its metadata, which means
    there what it means as a header; the configured deadline without either, and never more than `max_deadline_ms`.
    Compressed messages are bounded by the same limit as bodies after decompression. shares_port:
    other processes of the same gateway listen there too; each client is answered by one of them.
    """

    def __init__(
        self, app: App, config: GatewayConfig, observer: Observer, port: int, *, shares_port: bool = False
    ) -> None:
        self._port = port
        self._app = app
        self._config = config
        self._observer = observer
        self._calls: dict[str, Call] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model,
            "ModelConfig": self._model_config,
            "ModelInfer": self._infer,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
        }
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", config.limits.max_body_bytes),
                # Alone, so that a second gateway is told that the port is taken.
                ("grpc.so_reuseport", int(shares_port)),
            ],
            maximum_concurrent_rpcs=config.limits.max_queue_length,
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))

    async def start(self, host: str) -> str:
        """Take the port (0: a free one) and answer; its address. WorkspaceError where it is taken."""
        host = f"[{host}]" if ":" in host else host
        try:
            port = self._server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError as error:
            raise grpc_taken(host, self._port) from error
        await self._server.start()
        return f"grpc://{host}:{port}"

    async def stop(self, timeout_s: float) -> None:
        """Take no new calls, and finish those that were begun, for at most `timeout_s`."""
        await self._server.stop(timeout_s)

    async def _live(self, _request: Any, _watched: _Watched) -> Message:
        return messages.ServerLiveResponse(live=True)

    async def _ready(self, _request: Any, _watched: _Watched) -> Message:
        return messages.ServerReadyResponse(ready=self._app.is_ready)

    async def _metadata(self, _request: Any, _watched: _Watched) -> Message:
        return _as(messages.ServerMetadataResponse, describe.server())

    async def _model_ready(self, request: Any, _watched: _Watched) -> Message:
        try:
            self._app.opened().find(request.name, request.version or None)
        except NotFoundError:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    async def _model(self, request: Any, _watched: _Watched) -> Message:
        dataplane = self._app.opened()
        served, _ = dataplane.find(request.name, request.version or None)
        return _as(messages.ModelMetadataResponse, describe.model(served, dataplane))

    async def _model_config(self, request: Any, _watched: _Watched) -> Message:
        dataplane = self._app.opened()
        served, _ = dataplane.find(request.name, request.version or None)
        found = _as(model_config.ModelConfig, describe.configuration(served, dataplane, self._config))
        return messages.ModelConfigResponse(config=found)

    async def _index(self, _request: Any, _watched: _Watched) -> Message:
        found = describe.index(self._app.opened())
        return messages.RepositoryIndexResponse(
            models=[_as(messages.RepositoryIndexResponse.ModelIndex, entry) for entry in found]
        )

    async def _statistics(self, request: Any, _watched: _Watched) -> Message:
        found = describe.statistics(self._app.opened(), request.name or None, request.version or None)
        return _as(messages.ModelStatisticsResponse, found)

    async def _infer(self, request: Any, watched: _Watched) -> Message:
        deadline_s = protobuf.schedule(request).begin(watched.request.begun_s, self._told_s(watched), self._config)
        dataplane = self._app.opened()
        with dataplane.in_use:
            served, model = dataplane.find(request.model_name, request.model_version or None)
            with dataplane.admit(served, deadline_s) as place:
                tensors = protobuf.read(request)
                found = await infer(dataplane, served, model, tensors, self._config.limits, deadline_s, place)
        return protobuf.write(served, found, request.id)

    async def _stream(self, requests: AsyncIterator[_Sent], context: Context) -> AsyncIterator[Message]:
        """Answer a stream's requests in their order, some of them at once; a bad one fails alone."""
        begun: asyncio.Queue[asyncio.Task[Message] | None] = asyncio.Queue(_STREAMED_AT_ONCE)
        tasks: set[asyncio.Task[Any]] = set()

        def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            return task

        async def read() -> None:
            try:
                async for request in requests:
                    await begun.put(start(self._streamed(request, context)))
            except Exception as error:  # the stream ends, after what came before
                _log.warning("a stream was broken off: %s", type(error).__name__)
            await begun.put(None)

        start(read())
        try:
            while (task := await begun.get()) is not None:
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    async def _streamed(self, sent: _Sent, context: Context) -> Message:
        with self._watched("ModelStreamInfer", sent, context) as watched:
            message = messages.ModelInferRequest()
            try:
                message = sent.read()
                batcher.priority.set(priority_of(watched.request))
                answer = await self._infer(message, watched)
                answer.parameters["triton_final_response"].bool_param = True
                return messages.ModelStreamInferResponse(infer_response=answer)
            except Exception as error:
                named = messages.ModelInferResponse(model_name=message.model_name, id=message.id)
                told = watched.refused(error).message
                return messages.ModelStreamInferResponse(error_message=told, infer_response=named)

    def _told_s(self, watched: _Watched) -> float | None:
        """The earlier of the call's own deadline and what its `x-deadline-ms` says, None where it has neither."""
        most_ms = self._config.max_deadline_ms
        told = []
        if (left_s := watched.context.time_remaining()) is not None:
            told.append(time.monotonic() + min(left_s, most_ms / 1e3))
        if (told_ms := deadline_ms_of(watched.request, most_ms)) is not None:
            told.append(watched.request.begun_s + told_ms / 1e3)
        return min(told, default=None)

    def _handlers(self) -> Any:
        """Every method of the service; one that is not answered here says so."""
        handlers = {}
        for method in _SERVICE.methods:
            coded = {
                "request_deserializer": partial(_Sent, GetMessageClass(method.input_type)),
                "response_serializer": GetMessageClass(method.output_type).SerializeToString,
            }
            if method.name == "ModelStreamInfer":
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(self._stream, **coded)
            else:
                call = self._unary(method.name, self._calls.get(method.name, _unsupported(method.name)))
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(call, **coded)
        return grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)

    def _unary(self, name: str, call: Call) -> Callable[[_Sent, Context], Awaitable[Message]]:
        async def answer(sent: _Sent, context: Context) -> Message:
            with self._watched(name, sent, context) as watched:
                context.set_trailing_metadata(watched.named)
                try:
                    batcher.priority.set(priority_of(watched.request))
                    return await call(sent.read(), watched)
                except Exception as error:
                    _refuse(context, watched.refused(error), watched.named)
                    return messages.ModelInferResponse()  # nobody is sent it

        return answer

    @contextmanager
    def _watched(self, name: str, sent: _Sent, context: Context) -> Iterator[_Watched]:
        """Let the observer see a call as the request over HTTP that it is."""
        path = f"/{_SERVICE.full_name}/{name}"
        headers = {
            key.encode(): value if isinstance(value, bytes) else value.encode()
            for key, value in context.invocation_metadata()
        }
        watched = _Watched(Request(time.monotonic(), "POST", path, headers, sent.raw), context)
        self._observer.begin(watched.request)
        try:
            yield watched
        except asyncio.CancelledError:
            watched.status = _HUNG_UP
            raise
        finally:
            self._observer.end(watched.request, path, watched.status)


@dataclass(frozen=True, slots=True)
class _Sent:
    """What came, to be read as a message of this kind."""

    kind: type[Message]
    raw: bytes

    def read(self) -> Any:
        """Read it; MalformedMessageError."""
        try:
            return self.kind.FromString(self.raw)
        except DecodeError as error:
            raise MalformedMessageError(
                f"a call must carry a {self.kind.DESCRIPTOR.full_name}, got {len(self.raw)} bytes that are none; send "
                "one"
            ) from error


@dataclass(slots=True)
class _Watched:
    request: Request
    context: Context
    status: int = _OK

    @property
    def named(self) -> Metadata:
        """What tells the caller how the call is named here."""
        return (("x-request-id", self.request.request_id.decode()),)

    def refused(self, error: Exception) -> RankyardError:
        """Note what a call is refused for; an unexpected error is logged, and told as no more than that."""
        if not isinstance(error, RankyardError):
            _log.error("a call of %s failed", self.request.path, exc_info=error)
            error = RankyardError(FAILED)
        self.status = error.http_status
        return error


def _unsupported(name: str) -> Call:
    async def refuse(_request: Any, _watched: _Watched) -> Message:
        if name.startswith("RepositoryModel"):
            raise UnsupportedError(NO_CONTROL)
        raise UnsupportedError(f"{name} must be asked of a Triton server, this gateway has no such part; leave it out")

    return refuse


def _refuse(context: Context, error: RankyardError, named: Metadata) -> None:
    """End a call with an error: not by `abort`, which leaves both to the garbage collector."""
    context.set_code(_CODES.get(error.http_status, grpc.StatusCode.INTERNAL))
    context.set_details(error.message)
    context.set_trailing_metadata((*named, *_pushback(error)))


def _pushback(error: RankyardError) -> Metadata:
    """When a client may try again, as gRPC's own retries understand it (gRFC A6)."""
    if not isinstance(error, OverloadedError):
        return ()
    return (("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1e3))),)


def _as(kind: type[Message], struct: msgspec.Struct) -> Message:
    return json_format.ParseDict(msgspec.to_builtins(struct), kind())

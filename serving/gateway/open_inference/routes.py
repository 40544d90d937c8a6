"""The protocol's routes over HTTP, as a Triton server has them.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from models.errors import RankyardError
from serving.gateway import encoding, wire
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane
from serving.gateway.errors import UnsupportedError
from serving.gateway.messages import DEADLINE_HEADER, JSON, Answer, Request, Work
from serving.gateway.open_inference import describe, http
from serving.gateway.open_inference.infer import infer

HEADER_LENGTH = b"inference-header-content-length"
BINARY = b"application/octet-stream"
NO_CONTROL = (
    "models of this gateway come and go by promotion, they cannot be loaded or unloaded; run `rankyard promote` or "
    "`rankyard rollback`"
)

_MODEL = re.compile(
    r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<what>/infer|/ready|/config|/stats)?"
)
_CONTROL = re.compile(r"/v2/repository/models/[^/]+(?P<what>/load|/unload)")
_INDEX = "/v2/repository/index"
_RULES_BROKEN, _BAD_REQUEST = 422, 400


class Routes:
    """Answers the paths under /v2.

    opened: gives the models that are served, or says why there are none. ready: answers whether requests may come.
    """

    def __init__(self, config: GatewayConfig, opened: Callable[[], Dataplane], ready: Callable[[], Answer]) -> None:
        self._config = config
        self._opened = opened
        self._gets: dict[str, Callable[[], Answer]] = {
            "/v2": lambda: _json(describe.server()),
            "/v2/health/live": lambda: Answer(b""),
            "/v2/health/ready": ready,
            "/v2/models/stats": lambda: _json(describe.statistics(opened())),
        }

    def name(self, path: str) -> str | None:
        """Give the route of a path, without names, of which there may be any number; None for a path of none."""
        if path in self._gets or path == _INDEX:
            return path
        if found := _MODEL.fullmatch(path):
            return f"/v2/models/NAME{found['what'] or ''}"
        return f"/v2/repository/models/NAME{found['what']}" if (found := _CONTROL.fullmatch(path)) else None

    def method(self, path: str) -> str | None:
        """GET or POST, as the path is asked; None for a path of no route."""
        route = self.name(path)
        if route is None:
            return None
        return "POST" if route.startswith("/v2/repository") or route.endswith("/infer") else "GET"

    def get(self, path: str) -> Answer:
        """Answer a path of the method GET."""
        if (give := self._gets.get(path)) is not None:
            return give()
        found = _MODEL.fullmatch(path)
        assert found is not None
        name, version, what = found["name"], found["version"], found["what"]
        dataplane = self._opened()
        served, _ = dataplane.find(name, version)
        if what == "/ready":
            return Answer(b"")
        if what == "/stats":
            return _json(describe.statistics(dataplane, name, version))
        if what == "/config":
            return _json(describe.configuration(served, dataplane, self._config))
        return _json(describe.model(served, dataplane))

    def post(self, request: Request, deadline_s: float) -> Answer | Work:
        """Answer a path of the method POST."""
        if request.path == _INDEX:
            return _json(describe.index(self._opened()))
        if (found := _MODEL.fullmatch(request.path)) is None:
            raise UnsupportedError(NO_CONTROL)
        return partial(self._infer, found["name"], found["version"], request, deadline_s)

    async def _infer(
        self, name: str, version: str | None, request: Request, deadline_s: float, dataplane: Dataplane
    ) -> Answer:
        served, model = dataplane.find(name, version)
        length = request.headers.get(HEADER_LENGTH, b"")
        asked = http.read(request.body, length)
        told_s = deadline_s if DEADLINE_HEADER in request.headers else None
        deadline_s = http.schedule(asked).begin(request.begun_s, told_s, self._config)
        with dataplane.admit(served, deadline_s) as place:
            tensors = http.tensors(asked, request.body, length)
            found = await infer(dataplane, served, model, tensors, self._config.limits, deadline_s, place)
        body, json_length = http.write(served, found, asked)
        headers: list[tuple[bytes, bytes]] = []
        if json_length is not None:
            headers.append((HEADER_LENGTH, str(json_length).encode()))
        body, coding = encoding.encoded(body, request.headers.get(b"accept-encoding", b""))
        if coding is not None:
            headers.append((b"content-encoding", coding))
        return Answer(body, content_type=JSON if json_length is None else BINARY, headers=headers)


def refusal(error: RankyardError) -> tuple[bytes, int]:
    """Body and status of a refusal: one sentence, and 400 where the gateway's own routes tell 422 from it."""
    status = _BAD_REQUEST if error.http_status == _RULES_BROKEN else error.http_status
    return wire.encode(http.InferError(error.message)), status


def _json(answer: Any) -> Answer:
    return Answer(wire.encode(answer))

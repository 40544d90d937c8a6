"""One model asked outside a gateway, answering as the gateway would: what `rankyard predict` prints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from models.answers import to_json
from models.errors import RankyardError
from serving.gateway import candidates, wire
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, only
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel


def predict(served: ServedModel, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Answer every line: a text, or for a ranking model the JSON body of POST /v1/rank.

    A bad line gives `{"error": {...}}` in its place, as a bad query of several does over HTTP.
    """
    with asyncio.Runner() as runner:
        answers = _answers(served, lines)
        while (answer := runner.run(anext(answers, None))) is not None:
            yield answer


async def _answers(served: ServedModel, lines: Iterable[str]) -> AsyncIterator[dict[str, Any]]:
    # Nobody else waits here: a first, cold answer may take its time.
    config = GatewayConfig(deadline_ms=30_000)
    dataplane = await Dataplane.open(config, only(served), OnnxRuntime(config.runtime.n_workers))
    try:
        for line in lines:
            try:
                yield to_json(await _answer(dataplane, config, line))
            except RankyardError as error:
                yield {"error": {"code": error.code, "message": error.message, "field": error.field}}
    finally:
        await dataplane.close()


async def _answer(dataplane: Dataplane, config: GatewayConfig, line: str) -> Any:
    if not dataplane.roles.phases:
        return await dataplane.understand(line)
    request = wire.decode(line.encode(), wire.rank_decoder)
    asked = candidates.by_column(request, config.limits)
    return await dataplane.rank(asked, top_k=request.top_k, explain=request.explain)

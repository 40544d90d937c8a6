"""One model asked outside a gateway, answering as the gateway would: what `rankyard predict` prints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Any

from models.answers import to_json
from models.errors import RankyardError
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, only
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel


def predict(served: ServedModel, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Answer every line: a text, or for a ranking model the JSON body of POST /v1/rank, by row or by column.

    A bad line gives `{"error": {...}}` in its place, as a bad query of several does over HTTP.
    """
    with asyncio.Runner() as runner:
        answers = _answers(served, lines)
        try:
            while (answer := runner.run(anext(answers, None))) is not None:
                yield answer
        finally:
            runner.run(answers.aclose())


async def _answers(served: ServedModel, lines: Iterable[str]) -> AsyncGenerator[dict[str, Any], None]:
    # Nobody else waits here: a first, cold answer may take its time.
    config = GatewayConfig(deadline_ms=30_000)
    # To look for the fastest scorer would take longer than a few lists do.
    runtime = OnnxRuntime(config.runtime.n_workers, scorers=("onnx",))
    dataplane = await Dataplane.open(config, only(served), runtime)
    try:
        for line in lines:
            try:
                yield to_json(await _answer(dataplane, line))
            except RankyardError as error:
                yield {"error": {"code": error.code, "message": error.message, "field": error.field}}
    finally:
        await dataplane.close()


async def _answer(dataplane: Dataplane, line: str) -> Any:
    if not dataplane.roles.phases:
        return await dataplane.understand(line)
    asked = dataplane.reader.read(line.encode())
    return await dataplane.rank(asked.request, top_k=asked.top_k, explain=asked.explain)

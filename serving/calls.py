"""Every call of the gateway's HTTP contract: what to send, and what the answer means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from models.answers import Contributions, Phase, Ranking, Understanding
from models.errors import RankyardError
from serving.exchange import Exchange, Received, Retries, Transport, error
from serving.gateway import wire

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray

T = TypeVar("T")

DEFAULT_DEADLINE_MS = 1_000.0
JSON, ARROW, BINARY = "application/json", "application/vnd.apache.arrow.stream", "application/octet-stream"


class Calls:
    """Every call of the HTTP contract. url: `http://HOST:PORT`, with a path where a proxy wants one.

    deadline_ms: how long a call may take, retries included, where it does not say so itself; the gateway is told of it,
    and drops work that nobody waits for any more. Every call raises a `models.errors.RankyardError`: the gateway's own,
    DeadlineError when time is up, UnavailableError when nobody answers. InputError for an address that is none.
    """

    def __init__(self, url: str, transport: Transport, deadline_ms: float, retries: Retries | None) -> None:
        self._transport = transport
        self._exchange = Exchange(url, transport, deadline_ms, retries or Retries())

    async def understand(self, query: str, *, deadline_ms: float | None = None) -> Understanding:
        """Read one query's intent and entities."""
        received = await self._ask("/v1/understand", wire.UnderstandRequest(query=query), deadline_ms)
        return self._decoded(_understanding, received)

    async def understand_several(
        self, queries: Sequence[str], *, deadline_ms: float | None = None
    ) -> list[Understanding | RankyardError]:
        """Read queries in one request; a bad one gives its error in its place."""
        asked = wire.UnderstandRequest(queries=list(queries))
        results = self._decoded(_several, await self._ask("/v1/understand", asked, deadline_ms)).results
        return [
            error(*_said(result)) if "error" in result else msgspec.convert(result, Understanding) for result in results
        ]

    async def rank(self, request: wire.RankRequest, *, deadline_ms: float | None = None) -> Ranking:
        """Order candidates."""
        return self._ranked(await self._ask("/v1/rank", request, deadline_ms))

    async def rank_table(
        self, candidates: pyarrow.Table, options: wire.RankOptions | None = None, *, deadline_ms: float | None = None
    ) -> Ranking:
        """Order candidates that stand in an Arrow table: a column `id`, `text` where there are texts, one a feature."""
        from serving.gateway import arrow  # numpy and pyarrow, which other calls do without

        body = arrow.write(candidates, options or wire.RankOptions())
        return self._ranked(await self.post("/v1/rank", body, [("content-type", ARROW)], deadline_ms=deadline_ms))

    async def score(
        self,
        model: str,
        features: NDArray[np.floating] | Mapping[str, NDArray[np.floating]],
        *,
        version: str | None = None,
        deadline_ms: float | None = None,
    ) -> NDArray[np.float32]:
        """Scores [D] of one ranker, in the candidates' order, by binary tensors of the Open Inference Protocol.

        features: [D, F] as the model reads them, or [D] by name; NaN is missing.
        """
        from serving import tensors  # numpy, which other calls do without

        body, n_header_bytes = tensors.write(features)
        place = f"/v2/models/{model}" if version is None else f"/v2/models/{model}/versions/{version}"
        headers = [("content-type", BINARY), (tensors.HEADER_LENGTH, str(n_header_bytes))]
        received = await self.post(f"{place}/infer", body, headers, deadline_ms=deadline_ms)
        return self._decoded(lambda content: tensors.read(content, received.headers), received)

    async def models(self, *, deadline_ms: float | None = None) -> list[wire.ModelAnswer]:
        """Give what the gateway serves."""
        return self._decoded(_models, await self._exchange.ask("/v1/models", None, (), deadline_ms)).models

    async def is_ready(self, *, deadline_ms: float | None = None) -> bool:
        """Whether the gateway takes requests now; False too where nothing listens."""
        received = await self._exchange.once("/readyz", deadline_ms)
        return isinstance(received, Received) and received.status == 200

    async def post(
        self, path: str, body: bytes, headers: Sequence[tuple[str, str]] = (), *, deadline_ms: float | None = None
    ) -> Received:
        """Send a body as it is, with retries; raises what the gateway refuses it for."""
        return await self._exchange.ask(path, body, tuple(headers), deadline_ms)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    def _ranked(self, received: Received) -> Ranking:
        answer = self._decoded(_ranking, received)
        return Ranking(
            ranking=answer.ranking,
            models=answer.models,
            phases=tuple(Phase(one.model, one.n_in, one.n_out, one.ms, one.n_scored) for one in answer.phases),
            degraded=answer.degraded,
            reason=None if isinstance(answer.reason, msgspec.UnsetType) else answer.reason,
            explanations={} if isinstance(answer.explanations, msgspec.UnsetType) else answer.explanations,
            contributions=None
            if isinstance(found := answer.contributions, msgspec.UnsetType)
            else Contributions(found.base, found.candidates),
        )

    async def _ask(self, path: str, request: msgspec.Struct, deadline_ms: float | None) -> Received:
        return await self.post(path, _encode(request), [("content-type", JSON)], deadline_ms=deadline_ms)

    def _decoded(self, decode: Callable[[bytes], T], received: Received) -> T:
        try:
            return decode(received.body)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RankyardError(
                f"{self._exchange.url} must answer as this client's version knows it, got another shape ({error}); use "
                "one of its version"
            ) from error


def _said(result: Any) -> tuple[str, str, str | None]:
    told = msgspec.convert(result, wire.ErrorAnswer).error
    return told.code, told.message, told.field


_encode = msgspec.json.Encoder().encode
_understanding = msgspec.json.Decoder(Understanding).decode
_several = msgspec.json.Decoder(wire.UnderstandAnswers).decode
_ranking = msgspec.json.Decoder(wire.RankAnswer).decode
_models = msgspec.json.Decoder(wire.ModelsAnswer).decode

"""The gateway without HTTP: the models it serves, and one call a question. Also what `rankyard predict` asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.answers import Ranking, Understanding
from models.batch import Encoded
from models.errors import NotFoundError, RankyardError
from models.intent import IntentModel
from models.model import Model, open_model
from models.ranking import RankingModel, RankRequest
from models.tagging import TaggingModel
from registry import golden
from serving.gateway import intent, ranking, tagging
from serving.gateway.batcher import Batcher
from serving.gateway.cache import open_cache
from serving.gateway.candidates import Reader
from serving.gateway.config import GatewayConfig, PhaseConfig
from serving.gateway.published import Published
from serving.gateway.telemetry import Telemetry
from serving.gateway.understand import Understand
from serving.gateway.wire import Explain
from serving.runtime.protocol import Runtime, ServedModel

_RETIRES_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Roles:
    """Which model answers what; None or no phases where nothing does."""

    intent: ServedModel | None = None
    tagging: ServedModel | None = None
    phases: tuple[tuple[ServedModel, PhaseConfig], ...] = ()

    @property
    def models(self) -> dict[str, ServedModel]:
        """Every model once, by reference."""
        served = [self.intent, self.tagging, *(model for model, _ in self.phases)]
        return {model.ref: model for model in served if model is not None}

    def answers(self, ref: str) -> tuple[str, ...]:
        """What the model `ref` is asked for: `intent`, `tagging`, `ranking`."""
        asked = {
            "intent": self.intent is not None and self.intent.ref == ref,
            "tagging": self.tagging is not None and self.tagging.ref == ref,
            "ranking": any(model.ref == ref for model, _ in self.phases),
        }
        return tuple(question for question, is_asked in asked.items() if is_asked)


def choose(config: GatewayConfig, deployment: Path) -> Roles:
    """Resolve a configuration against a deployment directory.

    NotFoundError where nothing can be served, ConfigError where the choice is not the only one.
    """
    directory = config.deployment or deployment
    published = Published(directory)
    entities = tagging.choose(published, config.models.tagging)
    roles = Roles(
        intent=intent.choose(published, config.models.intent, entities),
        tagging=entities,
        phases=tuple(ranking.choose(published, config.models.ranking, config.phases)),
    )
    if not roles.models:
        raise NotFoundError(f"a gateway must have a model to serve, {directory} has no champion; promote a model first")
    return roles


def only(served: ServedModel) -> Roles:
    """Roles of a gateway that serves one model alone, for every question that it answers."""
    manifest = served.bundle.manifest
    if manifest.family == "ranking":
        return Roles(phases=((served, PhaseConfig(model=served.ref)),))
    return Roles(
        intent=served if manifest.labels is not None else None, tagging=served if manifest.family == "tagging" else None
    )


class Dataplane:
    """Opened models and the batcher before them; belongs to one event loop.

    Deadlines are seconds on the clock of `time.monotonic()`.
    """

    def __init__(
        self, config: GatewayConfig, roles: Roles, runtime: Runtime, models: dict[str, Model], telemetry: Telemetry
    ) -> None:
        self.roles = roles
        self._n_users = 0
        self._runtime = runtime
        telemetry.runtime_degraded.set_function(lambda: float(runtime.is_degraded))
        self._drain_s = config.drain_s
        self._deadline_ms = config.deadline_ms
        self._batcher = Batcher(runtime, config.batch, config.limits.max_queue_length, telemetry)
        answering = [model for model in (roles.intent, roles.tagging) if model is not None]
        variants = [f"{served.ref} {served.bundle.digest} {config.runtime.variant}" for served in answering]
        self._cache = open_cache(config.cache, variants, telemetry) if answering else None
        self._understand = Understand(
            self._batcher,
            config.limits,
            {ref: model for ref, model in models.items() if isinstance(model, IntentModel | TaggingModel)},
            intent=roles.intent,
            tagging=roles.tagging,
            cache=self._cache,
        )
        self._rankers = {ref: model for ref, model in models.items() if isinstance(model, RankingModel)}
        self._rank = ranking.Rank(
            self._batcher, config.limits, telemetry, roles.phases, self._rankers, runtime.n_workers
        )
        self.reader = Reader(config.limits, [name for ranker in self._rankers.values() for name in ranker.sent])
        """Reads requests to rank, for the features of the models that are served."""

    @classmethod
    async def open(
        cls, config: GatewayConfig, roles: Roles, runtime: Runtime, telemetry: Telemetry | None = None
    ) -> Dataplane:
        """Load every model, and prove on its golden rows that it reads and answers as it was trained."""
        models: dict[str, Model] = {}
        for ref, served in roles.models.items():
            await runtime.load(served)
            models[ref] = await asyncio.to_thread(_open, served)
        return cls(config, roles, runtime, models, telemetry or Telemetry())

    async def understand(self, query: object, deadline_s: float | None = None) -> Understanding:
        """Read one query's intent and entities; None for the configured deadline."""
        return await self._understand.one(query, self._deadline(deadline_s))

    async def understand_several(
        self, queries: Sequence[object], deadline_s: float | None = None
    ) -> list[Understanding | RankyardError]:
        """Read queries in their order; a bad one gives its error in its place."""
        return await self._understand.several(queries, self._deadline(deadline_s))

    async def rank(
        self,
        request: RankRequest,
        *,
        top_k: int | None = None,
        explain: Explain = False,
        deadline_s: float | None = None,
    ) -> Ranking:
        """Order candidates, through every phase; None for the configured deadline.

        explain: True for what each feature added to each score and what was read, "values" for what was read alone.
        """
        return await self._rank.answer(request, top_k=top_k, explain=explain, deadline_s=self._deadline(deadline_s))

    def ranker(self, name: str, version: str | None) -> tuple[ServedModel, RankingModel]:
        """Give a served ranking model by its name, and version where one is asked for; NotFoundError otherwise."""
        for served, _ in self.roles.phases:
            if served.name == name and version in (None, served.version):
                return served, self._rankers[served.ref]
        wanted = name if version is None else f"{name}/{version}"
        known = ", ".join(served.ref for served, _ in self.roles.phases) or "none"
        raise NotFoundError(f"a model must be one of the rankers served ({known}), got {wanted[:100]}; correct it")

    async def score(
        self, served: ServedModel, encoded: Encoded, deadline_s: float | None = None
    ) -> NDArray[np.float32]:
        """Scores [D] of candidates as the model reads them, without phases; None for the configured deadline."""
        if not encoded.length:
            return np.empty(0, np.float32)
        outputs = await self._batcher.submit(served, encoded, self._deadline(deadline_s))
        return np.asarray(outputs["score"], np.float32).reshape(-1)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold off `retire` as long as a request may ask."""
        self._n_users += 1
        try:
            yield
        finally:
            self._n_users -= 1

    async def retire(self) -> None:
        """Close when nobody uses it any more."""
        while self._n_users:
            await asyncio.sleep(_RETIRES_EVERY_S)
        await self.close()

    async def close(self) -> None:
        """Finish what was begun, within the configured time, and release the runtime."""
        await self._batcher.drain(self._drain_s)
        self._rank.close()
        if self._cache is not None:
            await self._cache.close()
        await self._runtime.close()

    def _deadline(self, deadline_s: float | None) -> float:
        return time.monotonic() + self._deadline_ms / 1e3 if deadline_s is None else deadline_s


def _open(served: ServedModel) -> Model:
    model = open_model(served.bundle.path, served.bundle.manifest)
    golden.check_encoding(served.bundle, model.encode)
    return model

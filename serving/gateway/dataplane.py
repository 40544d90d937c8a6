"""The gateway without HTTP: the models it serves, and one call a question. Also what `rankyard predict` asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from models.answers import Ranking, Understanding
from models.batch import Encoded
from models.errors import NotFoundError, RankyardError
from models.features import PairFeaturizer
from models.intent import IntentModel
from models.model import Model, open_model
from models.pairs import trimmed
from models.ranking import RankingModel, RankRequest
from models.tagging import TaggingModel
from models.text_cache import TextCache
from registry import golden
from serving.gateway import intent, ranking, tagging
from serving.gateway.batcher import Batcher, give_up
from serving.gateway.cache import open_cache
from serving.gateway.candidates import Reader
from serving.gateway.config import GatewayConfig, PhaseConfig
from serving.gateway.cost import Cost
from serving.gateway.flow import Outputs, Place
from serving.gateway.published import Published
from serving.gateway.series import ModelSeries
from serving.gateway.statistics import Asked
from serving.gateway.telemetry import Telemetry
from serving.gateway.understand import Places, Understand
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


class Users:
    """Counts who is inside."""

    n = 0

    def __enter__(self) -> None:
        self.n += 1

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.n -= 1


class Dataplane:
    """Opened models and the batcher before them; belongs to one event loop.

    Deadlines are seconds on the clock of `time.monotonic()`.
    """

    def __init__(
        self,
        config: GatewayConfig,
        roles: Roles,
        runtime: Runtime,
        models: dict[str, Model],
        telemetry: Telemetry,
        costs: Mapping[str, Cost],
    ) -> None:
        self.roles = roles
        self.in_use = Users()
        """Entered as long as a request may ask: holds off `retire`."""
        self.n_workers = runtime.n_workers
        self._found = _by_name(roles.models.values(), models)
        self._runtime = runtime
        telemetry.runtime_degraded.set_function(lambda: float(runtime.is_degraded))
        self._telemetry = telemetry
        telemetry.hold(roles.models.values())
        self._drain_s = config.drain_s
        self._deadline_ms = config.deadline_ms
        self._batcher = Batcher(runtime, config.batch, config.limits.max_queue_length, telemetry, costs)
        answering = [model for model in (roles.intent, roles.tagging) if model is not None]
        variants = [f"{served.ref} {served.bundle.digest} {config.runtime.variant}" for served in answering]
        self._cache = open_cache(config.cache, variants, telemetry) if answering else None
        self._understand = Understand(
            self._batcher,
            config.limits,
            {ref: model for ref, model in models.items() if isinstance(model, IntentModel | TaggingModel)},
            intent=roles.intent,
            tagging=roles.tagging,
            telemetry=telemetry,
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
        cls,
        config: GatewayConfig,
        roles: Roles,
        runtime: Runtime,
        telemetry: Telemetry | None = None,
        texts: TextCache | None = None,
    ) -> Dataplane:
        """Load every model, and prove on its golden rows that it reads and answers as it was trained.

        texts: what earlier models have computed of texts, where there were some.
        """
        models: dict[str, Model] = {}
        texts = TextCache(config.cache.max_text_bytes) if texts is None else texts
        costs: dict[str, Cost] = {}
        for ref, served in roles.models.items():
            await runtime.load(served)
            models[ref], costs[ref] = await asyncio.to_thread(_open, served, texts)
        return cls(config, roles, runtime, models, telemetry or Telemetry(), costs)

    def begin(self, query: object, deadline_s: float) -> Understanding | Places:
        """Give what is known of a query, or admit it, for `understand`; OverloadedError where it would come in vain."""
        return self._understand.begin(query, deadline_s)

    async def understand(self, query: object, deadline_s: float | None = None, places: Places = ()) -> Understanding:
        """Read one query's intent and entities; None for the configured deadline. places: what `begin` gave."""
        return await self._understand.one(query, self._deadline(deadline_s), places=places)

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
        place: Place | None = None,
    ) -> Ranking:
        """Order candidates, through every phase; None for the configured deadline. place: what `admit_ranking` gave.

        explain: True for what each feature added to each score and what was read, "values" for what was read alone.
        """
        return await self._rank.answer(
            request, top_k=top_k, explain=explain, deadline_s=self._deadline(deadline_s), place=place
        )

    def admit_ranking(self, deadline_s: float) -> Place:
        """Keep room for candidates before they are read; OverloadedError, NotFoundError where nothing ranks."""
        return self._rank.admit(deadline_s)

    def find(self, name: str, version: str | None) -> tuple[ServedModel, Model]:
        """Give a served model by its name and version (None: the highest that is served); NotFoundError otherwise."""
        try:
            return self._found[name, version]
        except KeyError:
            wanted = name if version is None else f"{name}/{version}"
            known = ", ".join(self.roles.models)
            raise NotFoundError(
                f"a model must be one of those served ({known}), got {wanted[:100]}; correct it"
            ) from None

    def admit(self, served: ServedModel, deadline_s: float) -> Place:
        """Keep room for a request to a model before it costs anything, for `run`; OverloadedError."""
        return self._batcher.admit(served, deadline_s)

    def series(self, served: ServedModel) -> ModelSeries:
        """Give what is measured of a model."""
        return self._telemetry.model(served)

    async def run(
        self, served: ServedModel, rows: Sequence[Encoded], deadline_s: float, place: Place | None = None
    ) -> list[Outputs]:
        """Outputs of rows as the model reads them, each queued by itself; where one fails, nobody waits for others."""
        pending: list[asyncio.Future[Outputs]] = []
        try:
            with Asked(self._telemetry.model(served).statistics):
                if len(rows) == 1:
                    answer = self._batcher.submit(served, rows[0], deadline_s, place, is_only=place is not None)
                    return [await answer]
                pending.extend(self._batcher.submit(served, row, deadline_s, place) for row in rows)
                return await asyncio.gather(*pending)
        finally:
            give_up(pending)

    async def encode(self, served: ServedModel, request: RankRequest, deadline_s: float) -> list[Encoded]:
        """What a ranking model reads of candidates, in their order, in as many blocks as it scores them in."""
        encoded = await self._rank.encode(served, request, deadline_s)
        blocks = self._rankers[served.ref].blocks(encoded, in_order=True)
        return [encoded] if len(blocks) == 1 else [trimmed(encoded, block) for block in blocks]

    @property
    def featurizers(self) -> list[PairFeaturizer]:
        """What computes features of texts, once an encoder."""
        found = [ranker.featurizer for ranker in self._rankers.values() if ranker.featurizer is not None]
        return list({featurizer.encoder_digest: featurizer for featurizer in found}.values())

    async def retire(self) -> None:
        """Close when nobody uses it any more."""
        await asyncio.sleep(_RETIRES_EVERY_S)  # who was admitted a moment ago enters with the first step of a task
        while self.in_use.n:
            await asyncio.sleep(_RETIRES_EVERY_S)
        await self.close()

    async def close(self) -> None:
        """Finish what was begun, within the configured time, and release the runtime."""
        await self._batcher.drain(self._drain_s)
        self._rank.close()
        if self._cache is not None:
            await self._cache.close()
        await self._runtime.close()
        self._telemetry.release(self.roles.models.values())

    def _deadline(self, deadline_s: float | None) -> float:
        return time.monotonic() + self._deadline_ms / 1e3 if deadline_s is None else deadline_s


def _by_name(
    served: Iterable[ServedModel], models: Mapping[str, Model]
) -> dict[tuple[str, str | None], tuple[ServedModel, Model]]:
    """Models by name and version; without a version the highest."""
    found: dict[tuple[str, str | None], tuple[ServedModel, Model]] = {}
    for model in sorted(served, key=lambda one: (len(one.version), one.version)):
        found[model.name, model.version] = found[model.name, None] = (model, models[model.ref])
    return found


def _open(served: ServedModel, texts: TextCache) -> tuple[Model, Cost]:
    model = open_model(served.bundle.path, served.bundle.manifest, texts)
    golden.check_encoding(served.bundle, model.encode)
    return model, Cost.measured(served.bundle)

"""Ranking in the gateway: which models answer it, and one phase after the other over the candidates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models import fusion
from models.answers import Phase, Ranked, Ranking
from models.batch import Encoded
from models.errors import DeadlineError, InputError, NotFoundError, OverloadedError, RankyardError
from models.pairs import trimmed
from models.ranking import RankingModel, RankRequest, ranked
from serving.gateway.batcher import Batcher
from serving.gateway.config import FuseConfig, LimitsConfig, LinearConfig, PhaseConfig
from serving.gateway.explain import Explainers
from serving.gateway.explain import values as explain_values
from serving.gateway.published import Published
from serving.gateway.telemetry import Telemetry
from serving.gateway.wire import Explain
from serving.runtime.protocol import ServedModel


def choose(
    published: Published, ref: str | None, phases: Sequence[PhaseConfig]
) -> list[tuple[ServedModel, PhaseConfig]]:
    """The configured phases, else one phase with the model of `ref`, else with the only published champion."""
    if phases:
        return [
            (published.expect(published.open(phase.model), "ranking", f"phases[{number}].model"), phase)
            for number, phase in enumerate(phases)
        ]
    if ref is not None:
        served: ServedModel | None = published.expect(published.open(ref), "ranking", "models.ranking")
    else:
        served = published.only_champion("ranking")
    return [] if served is None else [(served, PhaseConfig(model=served.ref))]


@dataclass(frozen=True, slots=True)
class _Order:
    """What a phase made of its candidates `ids`, with the matrix that its model read of them."""

    ranked: tuple[Ranked, ...]
    ids: tuple[str, ...]
    encoded: Encoded


class Rank:
    """Runs a request through the phases. A later phase that fails or overruns is skipped, and the answer says so."""

    def __init__(
        self,
        batcher: Batcher,
        limits: LimitsConfig,
        telemetry: Telemetry,
        phases: Sequence[tuple[ServedModel, PhaseConfig]],
        models: Mapping[str, RankingModel],
        n_threads: int,
    ) -> None:
        self._batcher = batcher
        self._telemetry = telemetry
        self._phases = phases
        self._fuses = any(config.fuse is not None for _, config in phases)
        self._models = models
        self._names = {served.ref: served.bundle.manifest.features or () for served, _ in phases}
        self._known = frozenset(name for names in self._names.values() for name in names)
        self._encoders = Encoders(n_threads, limits.max_queue_length)
        self._explainers = Explainers(self._encoders.threads)

    async def answer(self, request: RankRequest, *, top_k: int | None, explain: Explain, deadline_s: float) -> Ranking:
        """Rank candidates; InputError, NotFoundError, OverloadedError, DeadlineError, UnavailableError."""
        if not self._phases:
            raise NotFoundError("a ranking model must be served to rank candidates, there is none; promote one first")
        if explain is True:
            await self._expect_explained()
        if not request.ids:
            return Ranking((), tuple(served.ref for served, _ in self._phases), ())
        phases: list[Phase] = []
        reasons: list[str] = []
        ids: Sequence[str] = request.ids
        order: _Order | None = None
        scored: dict[int, dict[str, float]] = {}
        for number, (served, config) in enumerate(self._phases):
            started = time.perf_counter()
            n_in = len(ids)
            try:
                order = await self._score(served, _subset(request, ids), _within(config, deadline_s))
                if self._fuses:
                    scored[number] = {one.id: one.score for one in order.ranked}
                    order = replace(order, ranked=_fused(order, number, scored, config.fuse))
            except RankyardError as error:
                if number == 0:
                    raise
                self._telemetry.degraded(served.ref)
                reasons.append(f"{served.ref} was skipped: {error.message}")
            else:
                ids = [one.id for one in order.ranked]
                ms = (time.perf_counter() - started) * 1e3
                phases.append(Phase(served.ref, n_in, min(n_in, config.keep or n_in), round(ms, 3)))
            ids = ids[: config.keep]
        assert order is not None
        ranking = order.ranked[: len(ids[:top_k])]
        answer = Ranking(
            ranking=ranking,
            models=tuple(phase.model for phase in phases),
            phases=tuple(phases),
            degraded=bool(reasons),
            reason="; ".join(reasons) or None,
        )
        return await self._explained(answer, order, explain, deadline_s) if explain else answer

    def close(self) -> None:
        """End the encoding threads."""
        self._encoders.close()

    async def _score(self, served: ServedModel, request: RankRequest, deadline_s: float) -> _Order:
        model = self._models[served.ref]
        asked = self._for_model(served.ref, request)
        if served.bundle.manifest.reads_texts:
            encoded = await self._encoders.encode(model, asked, deadline_s)
        else:
            encoded = model.encode(asked)
        outputs = await self._outputs(served, model, encoded, deadline_s)
        return _Order(model.decode(asked, encoded, outputs), request.ids, encoded)

    async def _outputs(
        self, served: ServedModel, model: RankingModel, encoded: Encoded, deadline_s: float
    ) -> Mapping[str, NDArray[np.generic]]:
        """Scores [D]; the blocks of a long list are queued one by one, so that all workers share it."""
        rows = model.blocks(encoded)
        if len(rows) == 1:
            return await self._batcher.submit(served, encoded, deadline_s)
        futures = [self._batcher.submit(served, trimmed(encoded, block), deadline_s) for block in rows]
        try:
            answers = await asyncio.gather(*futures)
        finally:
            # Where one block failed, nobody waits for the others.
            for future in futures:
                future.cancel()
        scores_D = np.empty(encoded.length, dtype=np.float32)
        for block, answer in zip(rows, answers, strict=True):
            scores_D[block] = answer["score"]
        return {"score": scores_D}

    def _for_model(self, ref: str, request: RankRequest) -> RankRequest:
        """Leave out the features that only other phases know; one that none knows is left for the model to refuse."""
        others = self._known.difference(self._names[ref])
        return request.without(others) if others else request

    async def _expect_explained(self) -> None:
        served, config = self._phases[-1]
        if config.fuse is not None:
            raise InputError(
                'contributions need scores of one model, the last phase fuses several; ask with explain "values", or '
                "leave explain out",
                field="explain",
            )
        await self._explainers.check(served)

    async def _explained(self, answer: Ranking, order: _Order, explain: Explain, deadline_s: float) -> Ranking:
        """Add what the model of the order that stands read of the answered candidates, and what each value added."""
        served = next(served for served, _ in self._phases if served.ref == answer.phases[-1].model)
        rows = {identity: row for row, identity in enumerate(order.ids)}
        ids = [one.id for one in answer.ranking]
        arrays = {name: array[[rows[identity] for identity in ids]] for name, array in order.encoded.arrays.items()}
        answer = replace(answer, explanations=explain_values(ids, self._names[served.ref], arrays))
        if explain != "values":
            features_KF = np.asarray(arrays["features"], np.float32)
            found = await self._explainers.contributions(served, ids, features_KF, deadline_s)
            answer = replace(answer, contributions=found)
        return answer


class Encoders:
    """Threads for features that are computed from texts, and for explanations: too slow for the event loop."""

    def __init__(self, n_threads: int, max_queue_length: int) -> None:
        self.threads = ThreadPoolExecutor(n_threads, thread_name_prefix="encode")
        self._max_queue_length = max_queue_length
        self._n_waiting = 0

    async def encode(self, model: RankingModel, request: RankRequest, deadline_s: float) -> Encoded:
        """Encode on a free thread; DeadlineError at the deadline, OverloadedError where too many wait."""
        if self._n_waiting >= self._max_queue_length:
            raise OverloadedError(
                f"at most {self._max_queue_length} requests may wait for their features, as many do; come back in 1 s",
                retry_after_s=1.0,
            )
        self._n_waiting += 1
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                return await asyncio.get_running_loop().run_in_executor(self.threads, model.encode, request)
        except TimeoutError as error:
            raise DeadlineError(
                f"features of {len(request.ids)} candidates must be computed before the deadline, they were not; "
                "allow more time with x-deadline-ms, or send fewer"
            ) from error
        finally:
            self._n_waiting -= 1

    def close(self) -> None:
        """Let what runs end, drop the rest."""
        self.threads.shutdown(wait=True, cancel_futures=True)


def _fused(
    order: _Order, number: int, scored: Mapping[int, Mapping[str, float]], fuse: FuseConfig | None
) -> tuple[Ranked, ...]:
    """Order the candidates by what all phases up to `number` said of them, those that were skipped left out."""
    if fuse is None:
        return order.ranked
    phases = [phase for phase in sorted(scored) if phase <= number]
    scores_PD = [np.array([scored[phase][identity] for identity in order.ids]) for phase in phases]
    if isinstance(fuse, LinearConfig):
        fused_D = fusion.linear(scores_PD, [fuse.weights[phase] for phase in phases])
    else:
        fused_D = fusion.reciprocal_rank(scores_PD, fuse.k)
    return ranked(order.ids, fused_D)


def _within(config: PhaseConfig, deadline_s: float) -> float:
    if config.budget_ms is None:
        return deadline_s
    return min(deadline_s, time.monotonic() + config.budget_ms / 1e3)


def _subset(request: RankRequest, ids: Sequence[str]) -> RankRequest:
    """The request with these candidates alone, in this order."""
    if ids is request.ids:
        return request
    places = {identity: place for place, identity in enumerate(request.ids)}
    return request.take([places[identity] for identity in ids])

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
from serving.gateway.batcher import Batcher, give_up
from serving.gateway.config import FuseConfig, LimitsConfig, LinearConfig, PhaseConfig
from serving.gateway.explain import Explainers
from serving.gateway.explain import values as explain_values
from serving.gateway.flow import Outputs, Place
from serving.gateway.published import Published
from serving.gateway.statistics import Asked
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


@dataclass(frozen=True, slots=True)
class _Scores:
    """A phase's scores of the candidates in the rows `scored`, rising; `failure` says why it has not all of them."""

    scored: NDArray[np.int64]
    scores: NDArray[np.float64]
    encoded: Encoded
    failure: RankyardError | None


class Rank:
    """Runs a request through the phases. What a later phase fails or overruns on is left out, and the answer says so.

    A later phase that scored no candidate is skipped: the order before it stands. One that scored some of them orders
    those among themselves, within the places that they held; every other candidate keeps its place and its score.
    """

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
        self._series = {served.ref: telemetry.model(served) for served, _ in phases}
        self._phases = phases
        self._fuses = any(config.fuse is not None for _, config in phases)
        self._models = models
        self._names = {served.ref: served.bundle.manifest.features or () for served, _ in phases}
        known = frozenset(name for names in self._names.values() for name in names)
        self._others = {ref: known.difference(names) for ref, names in self._names.items()}
        """Features that only other phases know."""
        self._encoders = Encoders(n_threads, limits.max_queue_length)
        self._explainers = Explainers(self._encoders.threads)

    def admit(self, deadline_s: float) -> Place:
        """Keep room before the first phase's model for candidates that are not read yet; raises as `answer`."""
        served, config = self._first
        return self._batcher.admit(served, _within(config, deadline_s))

    async def answer(
        self,
        request: RankRequest,
        *,
        top_k: int | None,
        explain: Explain,
        deadline_s: float,
        place: Place | None = None,
    ) -> Ranking:
        """Rank candidates; InputError, NotFoundError, OverloadedError, DeadlineError, UnavailableError.

        place: what `admit` gave; without, the first phase is admitted when its model is asked, as the others are.
        """
        first, _ = self._first
        if explain is True:
            await self._expect_explained(deadline_s)
        if not request.ids:
            self._models[first.ref].expect_known(self._for_model(first.ref, request))
            return Ranking((), tuple(served.ref for served, _ in self._phases), ())
        phases: list[Phase] = []
        reasons: list[str] = []
        ids: Sequence[str] = request.ids
        order: _Order | None = None
        scored: dict[int, dict[str, float]] = {}
        for number, (served, config) in enumerate(self._phases):
            started = time.perf_counter()
            n_in = len(ids)
            asked = _subset(request, ids)
            series = self._series[served.ref]
            try:
                with series.phase(), Asked(series.statistics):
                    found = await self._score(
                        served, asked, config, deadline_s, place if order is None else None, is_first=order is None
                    )
                    with series.decode():
                        ranking = self._ranked(found, asked.ids, number, scored)
            except RankyardError as error:
                if order is None:
                    raise
                series.degraded.inc()
                reasons.append(f"{served.ref} was skipped: {_why(error, config, deadline_s)}")
            else:
                order = _Order(_placed(ranking, found.scored, order, n_in), asked.ids, found.encoded)
                if found.failure is not None:
                    series.degraded.inc()
                    reasons.append(
                        f"{served.ref} scored {len(ranking)} of {n_in} candidates, the others keep their places: "
                        f"{_why(found.failure, config, deadline_s)}"
                    )
                ids = [one.id for one in order.ranked]
                ms = (time.perf_counter() - started) * 1e3
                phases.append(Phase(served.ref, n_in, min(n_in, config.keep or n_in), round(ms, 3), len(ranking)))
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

    @property
    def _first(self) -> tuple[ServedModel, PhaseConfig]:
        if not self._phases:
            raise NotFoundError("a ranking model must be served to rank candidates, there is none; promote one first")
        return self._phases[0]

    def close(self) -> None:
        """End the encoding threads."""
        self._encoders.close()

    async def encode(self, served: ServedModel, request: RankRequest, deadline_s: float) -> Encoded:
        """What this model reads of the candidates; on a thread where it computes features of their texts."""
        model = self._models[served.ref]
        if served.bundle.manifest.reads_texts:
            return await self._encoders.encode(model, request, deadline_s)
        return model.encode(request)

    async def _score(
        self,
        served: ServedModel,
        request: RankRequest,
        config: PhaseConfig,
        deadline_s: float,
        place: Place | None,
        *,
        is_first: bool,
    ) -> _Scores:
        deadline_s = _within(config, deadline_s)
        with self._series[served.ref].encode():
            encoded = await self.encode(served, self._for_model(served.ref, request), deadline_s)
        # Under a budget the best candidates so far come first; else those of like length go together.
        blocks = self._models[served.ref].blocks(encoded, in_order=config.budget_ms is not None)
        if len(blocks) == 1:
            # As they came, whatever the order of the block.
            answer = await self._batcher.submit(served, encoded, deadline_s, place, is_only=place is not None)
            return _Scores(np.arange(encoded.length), _scores(answer), encoded, None)
        tasks: list[asyncio.Future[Outputs]] = [
            asyncio.ensure_future(self._block(served, encoded, block, deadline_s, place)) for block in blocks
        ]
        try:
            answers = await asyncio.gather(*tasks, return_exceptions=not is_first)
        finally:
            # Where nothing can come of it any more, nobody waits for the others.
            give_up(tasks)
        return _joined(blocks, answers, encoded)

    async def _block(
        self, served: ServedModel, encoded: Encoded, block: NDArray[np.int64], deadline_s: float, place: Place | None
    ) -> Outputs:
        """Score some rows; the blocks of a long list are queued one by one, so that all workers share it."""
        outputs: Outputs = await self._batcher.submit(served, trimmed(encoded, block), deadline_s, place)
        return outputs

    def _ranked(
        self, found: _Scores, ids: Sequence[str], number: int, scored: dict[int, dict[str, float]]
    ) -> tuple[Ranked, ...]:
        """Order what phase `number` scored, fused with the phases before it where that is configured."""
        ids = ids if len(found.scored) == len(ids) else [ids[row] for row in found.scored.tolist()]
        if self._fuses:
            scored[number] = dict(zip(ids, found.scores.tolist(), strict=True))
        fuse = self._phases[number][1].fuse
        return ranked(ids, found.scores) if fuse is None else _fused(ids, scored, fuse)

    def _for_model(self, ref: str, request: RankRequest) -> RankRequest:
        """Leave out the features that only other phases know; one that none knows is left for the model to refuse."""
        others = self._others[ref]
        return request.without(others) if others else request

    async def _expect_explained(self, deadline_s: float) -> None:
        served, config = self._phases[-1]
        if config.fuse is not None:
            raise InputError(
                'contributions need scores of one model, the last phase fuses several; ask with explain "values", or '
                "leave explain out",
                field="explain",
            )
        await self._explainers.check(served, deadline_s)

    async def _explained(self, answer: Ranking, order: _Order, explain: Explain, deadline_s: float) -> Ranking:
        """Add what the model of the order that stands read of the answered candidates, and what each value added.

        Contributions are the last phase's: where it was skipped there are none, and the reason is told already.
        """
        served = next(served for served, _ in self._phases if served.ref == answer.phases[-1].model)
        rows = {identity: row for row, identity in enumerate(order.ids)}
        ids = [one.id for one in answer.ranking]
        arrays = {name: array[[rows[identity] for identity in ids]] for name, array in order.encoded.arrays.items()}
        answer = replace(answer, explanations=explain_values(ids, self._names[served.ref], arrays))
        if explain != "values" and len(answer.phases) == len(self._phases):
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


def _joined(
    blocks: Sequence[NDArray[np.int64]], answers: Sequence[Outputs | BaseException], encoded: Encoded
) -> _Scores:
    """Put the scores of all blocks that came into one list; raises where none did."""
    scores_D = np.full(encoded.length, np.nan)
    is_scored_D = np.zeros(encoded.length, dtype=bool)
    failure: RankyardError | None = None
    for block, answer in zip(blocks, answers, strict=True):
        if isinstance(answer, RankyardError):
            failure = answer
        elif isinstance(answer, BaseException):
            raise answer
        else:
            scores_D[block] = _scores(answer)
            is_scored_D[block] = True
    scored = np.flatnonzero(is_scored_D)
    if failure is not None and not len(scored):
        raise failure
    return _Scores(scored, scores_D[scored], encoded, failure)


def _scores(answer: Outputs) -> NDArray[np.float64]:
    scores_D = np.asarray(answer["score"], dtype=np.float64).reshape(-1)
    if not np.isfinite(scores_D).all():
        raise InputError(
            "every score must be finite, some are not: a feature is beyond what its model can reckon with; correct it, "
            "or send null for missing"
        )
    return scores_D


def _placed(
    ranking: tuple[Ranked, ...], scored: NDArray[np.int64], before: _Order | None, n_in: int
) -> tuple[Ranked, ...]:
    """Put candidates that were scored, in their new order, into the places that they held; the others keep theirs."""
    if before is None or len(ranking) == n_in:
        return ranking
    placed = list(before.ranked[:n_in])
    for place, one in zip(scored.tolist(), ranking, strict=True):
        placed[place] = Ranked(one.id, one.score, place + 1)
    return tuple(placed)


def _fused(ids: Sequence[str], scored: Mapping[int, Mapping[str, float]], fuse: FuseConfig) -> tuple[Ranked, ...]:
    """Order candidates by what the phases said of them, without those that did not score every one of them."""
    phases = [phase for phase in sorted(scored) if all(identity in scored[phase] for identity in ids)]
    scores_PD = [np.array([scored[phase][identity] for identity in ids]) for phase in phases]
    if isinstance(fuse, LinearConfig):
        fused_D = fusion.linear(scores_PD, [fuse.weights[phase] for phase in phases])
    else:
        fused_D = fusion.reciprocal_rank(scores_PD, fuse.k)
    return ranked(ids, fused_D)


def _why(error: RankyardError, config: PhaseConfig, deadline_s: float) -> str:
    """Say why a phase has not scored everything; its own budget is nothing that a caller could change."""
    if config.budget_ms is not None and isinstance(error, DeadlineError) and time.monotonic() < deadline_s:
        return f"its budget of {config.budget_ms:g} ms was over"
    return error.message


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

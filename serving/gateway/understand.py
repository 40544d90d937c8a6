"""Understanding a query: its intent and its entities, from one model or two, as one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from models.answers import Reading, Understanding
from models.errors import InputError, NotFoundError, RankyardError, TooLargeError
from models.intent import IntentModel
from models.tagging import TaggingModel
from serving.gateway.batcher import Batcher, give_up, priority
from serving.gateway.cache import AnswerCache, Flight
from serving.gateway.config import LimitsConfig
from serving.gateway.errors import shown
from serving.gateway.flow import Decoding, Place
from serving.gateway.statistics import Asked
from serving.gateway.telemetry import Telemetry
from serving.runtime.protocol import ServedModel

TextModel = IntentModel | TaggingModel

Places = Sequence[Place]
"""Room for one query before each model that reads it."""

_BLOCK = 16
"""Queries of one request that are encoded before others get their turn; one takes 50 to 100 microseconds."""


class Understand:
    """Asks the models that answer intents and entities; one forward pass where they are the same model.

    models: opened models by reference. intent, tagging: which of them answers what. cache: of their answers, if any.
    """

    def __init__(
        self,
        batcher: Batcher,
        limits: LimitsConfig,
        models: dict[str, TextModel],
        *,
        intent: ServedModel | None,
        tagging: ServedModel | None,
        telemetry: Telemetry,
        cache: AnswerCache | None = None,
    ) -> None:
        self._batcher = batcher
        self._limits = limits
        self._cache = cache
        self._intent_ref = intent.ref if intent is not None else None
        self._tagging_ref = tagging.ref if tagging is not None else None
        served = {model.ref: model for model in (intent, tagging) if model is not None}
        self._passes = [(model, models[ref], telemetry.model(model)) for ref, model in served.items()]
        self._statistics = [series.statistics for _, _, series in self._passes]
        refs = {"intent": self._intent_ref, "tagging": self._tagging_ref}
        self._signed = {family: ref for family, ref in refs.items() if ref is not None}

    def begin(self, query: object, deadline_s: float, field: str = "query") -> Understanding | Places:
        """Give an answer that is there already, or what `one` needs, to be given back where that is never entered.

        InputError, TooLargeError, OverloadedError where no answer could be in time: under overload most requests end
        here, before they have cost a task.
        """
        text = self._check(query, field)
        if self._cache is not None and (found := self._cache.kept(text)) is not None:
            return found
        return self._admit(deadline_s) if self._cache is None or self._cache.needs_model(text) else ()

    async def one(self, query: object, deadline_s: float, field: str = "query", places: Places = ()) -> Understanding:
        """Understand one query; InputError, TooLargeError, OverloadedError, DeadlineError, UnavailableError.

        places: what `begin` gave; without, the query is admitted when its models are asked.
        """
        try:
            text = self._check(query, field)
            if self._cache is None:
                return await self._ask(text, deadline_s, field, None, places)
            flight = self._cache.flight(text)
            if flight is not None:
                _leave(places)
                if flight.priority == "bulk" and priority.get() == "interactive":
                    flight.priority = "interactive"
                    self._batcher.hasten(flight.pending)
            return await self._cache.answer(
                text, lambda flight: self._ask(text, deadline_s, field, flight, places), deadline_s
            )
        finally:
            _leave(places)

    def _admit(self, deadline_s: float) -> Places:
        """Keep room for a query before every model; all or none."""
        places: list[Place] = []
        try:
            for served, _, _ in self._passes:
                places.append(self._batcher.admit(served, deadline_s))
        except RankyardError:
            _leave(places)
            raise
        return places

    async def _ask(
        self, text: str, deadline_s: float, field: str, flight: Flight | None, places: Places
    ) -> Understanding:
        pending: list[asyncio.Future[Reading]] = []
        if flight is not None:
            flight.pending = pending
        try:
            with Asked(*self._statistics):
                # Other queries of the same request have their turn after this one, and no places yet.
                is_only = len(places) == 1
                places = places or self._admit(deadline_s)
                for place, (served, model, series) in zip(places, self._passes, strict=True):
                    with series.encode():
                        encoded = model.encode(text)
                    decoding = Decoding(text, model.decode_batch)
                    pending.append(self._batcher.submit(served, encoded, deadline_s, place, decoding, is_only=is_only))
                if flight is not None and flight.priority != priority.get():
                    self._batcher.hasten(pending)  # somebody more urgent has joined by now
                # One model is the usual case, and gathering costs more than the waiting itself.
                readings = [await pending[0]] if len(pending) == 1 else await asyncio.gather(*pending)
        except InputError as error:
            error.field = field
            raise
        finally:
            _leave(places)
            give_up(pending)
        return self._compose(
            text, {served.ref: reading for (served, _, _), reading in zip(self._passes, readings, strict=True)}
        )

    async def several(self, queries: Sequence[object], deadline_s: float) -> list[Understanding | RankyardError]:
        """Understand queries in their order; a bad one gives its error in its place."""
        if len(queries) > self._limits.max_queries:
            raise TooLargeError(
                f"a request must have at most {self._limits.max_queries} queries, got {len(queries)}; "
                "send several requests",
                field="queries",
            )
        tasks = []
        async with asyncio.TaskGroup() as group:
            for index, query in enumerate(queries):
                tasks.append(group.create_task(self._one_or_error(query, deadline_s, f"queries[{index}]")))
                if index % _BLOCK == _BLOCK - 1:
                    await asyncio.sleep(0)
        return [task.result() for task in tasks]

    async def _one_or_error(self, query: object, deadline_s: float, field: str) -> Understanding | RankyardError:
        try:
            return await self.one(query, deadline_s, field)
        except RankyardError as error:
            return error

    def _check(self, query: object, field: str) -> str:
        if not self._passes:
            raise NotFoundError(
                "an intent or tagging model must be served to understand queries, there is none; promote one first"
            )
        if not isinstance(query, str):
            raise InputError(f"a query must be a string, got {shown(query)}; send text", field=field)
        if len(query) > self._limits.max_query_chars:
            raise TooLargeError(
                f"a query must have at most {self._limits.max_query_chars} characters, got {len(query)}; shorten it",
                field=field,
            )
        if not query.strip():
            raise InputError(
                f"a query must have more than white space, got {shown(query)}; ask once something is typed", field=field
            )
        return query

    def _compose(self, text: str, readings: dict[str, Reading]) -> Understanding:
        intent = readings[self._intent_ref].intent if self._intent_ref is not None else None
        entities = readings[self._tagging_ref].entities if self._tagging_ref is not None else None
        return Understanding(text, intent, entities or (), self._signed)


def _leave(places: Places) -> None:
    for place in places:
        place.leave()

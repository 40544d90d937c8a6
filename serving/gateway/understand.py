"""Understanding a query: its intent and its entities, from one model or two, as one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from models.answers import Reading, Understanding
from models.batch import Encoded
from models.errors import InputError, NotFoundError, RankyardError, TooLargeError
from models.intent import IntentModel
from models.tagging import TaggingModel
from serving.gateway.batcher import Batcher, Outputs
from serving.gateway.cache import AnswerCache
from serving.gateway.config import LimitsConfig
from serving.runtime.protocol import ServedModel

TextModel = IntentModel | TaggingModel

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
        cache: AnswerCache | None = None,
    ) -> None:
        self._batcher = batcher
        self._limits = limits
        self._cache = cache
        self._intent_ref = intent.ref if intent is not None else None
        self._tagging_ref = tagging.ref if tagging is not None else None
        served = {model.ref: model for model in (intent, tagging) if model is not None}
        self._passes = [(model, models[ref]) for ref, model in served.items()]
        refs = {"intent": self._intent_ref, "tagging": self._tagging_ref}
        self._signed = {family: ref for family, ref in refs.items() if ref is not None}

    async def one(self, query: object, deadline_s: float, field: str = "query") -> Understanding:
        """Understand one query; InputError, TooLargeError, OverloadedError, DeadlineError, UnavailableError."""
        text = self._check(query, field)
        if self._cache is None:
            return await self._ask(text, deadline_s, field)
        return await self._cache.answer(text, lambda: self._ask(text, deadline_s, field), deadline_s)

    async def _ask(self, text: str, deadline_s: float, field: str) -> Understanding:
        pending: list[asyncio.Future[Outputs]] = []
        encodings: list[Encoded] = []
        try:
            for served, model in self._passes:
                encodings.append(model.encode(text))
                pending.append(self._batcher.submit(served, encodings[-1], deadline_s))
            outputs = await asyncio.gather(*pending)
        except InputError as error:
            error.field = field
            raise
        finally:
            for future in pending:
                future.cancel()
        readings = {
            served.ref: model.decode(text, encoded, found)
            for (served, model), encoded, found in zip(self._passes, encodings, outputs, strict=True)
        }
        return self._compose(text, readings)

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
            raise InputError(f"a query must be a string, got {type(query).__name__}; send text", field=field)
        if len(query) > self._limits.max_query_chars:
            raise TooLargeError(
                f"a query must have at most {self._limits.max_query_chars} characters, got {len(query)}; shorten it",
                field=field,
            )
        return query

    def _compose(self, text: str, readings: dict[str, Reading]) -> Understanding:
        intent = readings[self._intent_ref].intent if self._intent_ref is not None else None
        entities = readings[self._tagging_ref].entities if self._tagging_ref is not None else None
        return Understanding(text, intent, entities or (), self._signed)

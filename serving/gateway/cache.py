"""Answers to queries that were asked before, and one computation for all who ask the same at once.

An answer depends on the models and on the query's text alone. A cache belongs to one choice of models: another version
has another cache, and under another key where gateways share one.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from sys import getsizeof
from typing import Protocol

import msgspec

from models.answers import Reading, Understanding
from models.errors import ConfigError, DeadlineError
from serving.gateway.batcher import priority
from serving.gateway.config import CacheConfig
from serving.gateway.errors import EXPIRED
from serving.gateway.telemetry import Telemetry

_ENTRY_BYTES = 220
"""What an entry takes in the dictionary itself, with its size, measured with tracemalloc."""

_decoder = msgspec.json.Decoder(Understanding)
_encode = msgspec.json.Encoder().encode


class SharedAnswers(Protocol):
    """Answers that several gateways share; it never fails: what it cannot tell is None."""

    async def get(self, key: bytes) -> bytes | None:
        """Give the answer kept under `key`."""

    def put(self, key: bytes, answer: bytes) -> None:
        """Keep an answer, later."""

    async def close(self) -> None:
        """Finish what was begun."""


class LocalAnswers:
    """Answers by text, at most `max_bytes` of them; the one that was not asked for the longest time goes first.

    Kept as they are, not as JSON: reading one back would take longer than all the rest of a hit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._answers: OrderedDict[str, tuple[Understanding, int]] = OrderedDict()
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, text: str) -> Understanding | None:
        """Give the answer to `text`."""
        found = self._answers.get(text)
        if found is None:
            return None
        self._answers.move_to_end(text)
        return found[0]

    def put(self, text: str, answer: Understanding) -> None:
        """Keep the answer to `text`, until others need its place."""
        _, freed = self._answers.pop(text, (None, 0))
        n_bytes = _size(answer)
        self._answers[text] = answer, n_bytes
        self.n_bytes += n_bytes - freed
        while self.n_bytes > self._max_bytes:
            _, (_, freed) = self._answers.popitem(last=False)
            self.n_bytes -= freed


class Flight:
    """A query that is being asked, and all who wait for the answer: `None` where the one who asked gave up.

    priority: that of the most urgent of them. pending: what its models are asked, once they are.
    """

    __slots__ = ("found", "pending", "priority")

    def __init__(self) -> None:
        self.found: asyncio.Future[Understanding | None] = asyncio.get_running_loop().create_future()
        self.pending: list[asyncio.Future[Reading]] = []
        self.priority = priority.get()


class AnswerCache:
    """Understandings by text; belongs to one event loop and one choice of models.

    models: what the answers depend on beside the text, and the shared keys with them: each model's reference, digest
    and variant.
    """

    def __init__(
        self, config: CacheConfig, models: Iterable[str], telemetry: Telemetry, shared: SharedAnswers | None = None
    ) -> None:
        self._local = LocalAnswers(config.max_bytes)
        self._shared = shared
        self._models = hashlib.blake2b("\n".join(models).encode(), digest_size=32).digest()
        self._flights: dict[str, Flight] = {}
        self._telemetry = telemetry
        telemetry.cache_bytes.set_function(lambda: self._local.n_bytes)
        telemetry.cache_answers.set_function(self._local.__len__)
        telemetry.cache_max_bytes.set(config.max_bytes)

    def kept(self, text: str) -> Understanding | None:
        """Give what this process keeps."""
        found = self._local.get(text)
        if found is not None:
            self._telemetry.cache_hits.inc()
        return found

    def needs_model(self, text: str) -> bool:
        """Whether nobody is asking this already, and no other process could have the answer."""
        return self._shared is None and text not in self._flights

    def flight(self, text: str) -> Flight | None:
        """Give what somebody is already asking."""
        return self._flights.get(text)

    async def answer(
        self, text: str, ask: Callable[[Flight], Awaitable[Understanding]], deadline_s: float
    ) -> Understanding:
        """Give what is kept, what somebody is already asking, or what `ask` gives.

        Where the one who asks fails or gives up, the next who waits asks anew. DeadlineError at one's own deadline.
        """
        has_joined = False
        while True:
            kept = self.kept(text)
            if kept is not None:
                return kept
            flight = self._flights.get(text)
            if flight is None:
                return await self._lead(text, ask)
            if not has_joined:
                has_joined = True
                self._telemetry.cache_joined.inc()
            found = await _wait(flight.found, deadline_s)
            if found is not None:
                return found

    async def close(self) -> None:
        """Finish what is on its way to others."""
        if self._shared is not None:
            await self._shared.close()

    async def _lead(self, text: str, ask: Callable[[Flight], Awaitable[Understanding]]) -> Understanding:
        flight = self._flights[text] = Flight()
        found: Understanding | None = None
        try:
            if self._shared is not None:
                found = await self._from_shared(self._shared, text)
            if found is None:
                self._telemetry.cache_misses.inc()
                found = await ask(flight)
                self._local.put(text, found)
                if self._shared is not None:
                    self._shared.put(self._key(text), _encode(found))
            return found
        finally:
            del self._flights[text]
            flight.found.set_result(found)

    async def _from_shared(self, shared: SharedAnswers, text: str) -> Understanding | None:
        answer = await shared.get(self._key(text))
        if answer is None:
            return None
        try:
            found = _decoder.decode(answer)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None  # written by another version of this program, or by another one
        self._telemetry.cache_shared_hits.inc()
        self._local.put(text, found)
        return found

    def _key(self, text: str) -> bytes:
        return (
            b"rankyard:understand:"
            + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._models, digest_size=32).digest()
        )


def open_cache(config: CacheConfig, models: Iterable[str], telemetry: Telemetry) -> AnswerCache | None:
    """Make the cache that is configured, None for none; ConfigError where Redis cannot be used."""
    if not config.max_bytes:
        return None
    return AnswerCache(config, models, telemetry, None if config.redis_url is None else _redis(config))


def _redis(config: CacheConfig) -> SharedAnswers:
    try:
        from serving.gateway.redis_answers import RedisAnswers
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cache.redis_url needs the package {error.name}, which is not installed; "
            "pip install 'rankyard[serve,redis]'",
            field="cache.redis_url",
        ) from error
    try:
        return RedisAnswers(config.redis_url or "", config.ttl_s)
    except ValueError as error:
        raise ConfigError(
            f"cache.redis_url must be like redis://HOST:PORT/DB, got {config.redis_url} ({error}); correct it",
            field="cache.redis_url",
        ) from error


async def _wait(flight: asyncio.Future[Understanding | None], deadline_s: float) -> Understanding | None:
    try:
        async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
            return await asyncio.shield(flight)
    except TimeoutError as error:
        raise DeadlineError(EXPIRED) from error


def _size(answer: Understanding) -> int:
    """Bytes of an answer and its entry; the names of labels, tags and models belong to the models."""
    owned: list[object] = [answer, answer.query, answer.entities]
    texts = [answer.query]
    for entity in answer.entities:
        owned += (entity, entity.text, entity.start, entity.end, entity.confidence)
        texts.append(entity.text)
    if answer.intent is not None:
        owned += (answer.intent, answer.intent.confidence, answer.intent.alternatives, answer.intent.labels)
        for other in (*answer.intent.alternatives, *answer.intent.labels):
            owned += (other, other.confidence)
    # A text that is not ASCII keeps its UTF-8 with it once it has been sent.
    n_utf8 = sum([len(text.encode("utf-8", "surrogatepass")) + 1 for text in texts if not text.isascii()])
    return sum(map(getsizeof, owned)) + n_utf8 + _ENTRY_BYTES

"""Answers that several gateways share in a Redis server. A server that is slow, full or gone costs a caller little."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

_log = logging.getLogger("rankyard.gateway")

_PATIENCE_S = 0.02
"""How long a caller waits for Redis; an answer takes less than that to compute."""
_TIMEOUT_S = 1.0
"""How long Redis may take, before it is left alone; a busy gateway itself is late to read what it says."""
_PAUSE_S = 1.0
"""How long Redis is left alone after it failed."""
_MAX_PUTS = 256
"""Answers that wait to be sent to Redis; beyond them answers are not shared."""


class RedisAnswers:
    """Implements `serving.gateway.cache.SharedAnswers`; belongs to one event loop.

    What is asked while Redis answers goes together next, and what is kept too: two connections serve any number of
    callers. url: `redis://HOST:PORT/DB`, `rediss://` or `unix://`. ttl_s: how long an answer is kept. patience_s: how
    long a caller waits; while Redis takes longer than that, no others wait with him.
    """

    def __init__(self, url: str, ttl_s: int, patience_s: float = _PATIENCE_S) -> None:
        self._redis = Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        self._ttl_s = ttl_s
        self._patience_s = patience_s
        self._asks_again_at_s = 0.0
        self._asked_at_s = math.inf
        self._wanted: dict[bytes, asyncio.Future[bytes | None]] = {}
        self._kept: dict[bytes, bytes] = {}
        self._asking: asyncio.Task[None] | None = None
        self._putting: asyncio.Task[None] | None = None

    async def get(self, key: bytes) -> bytes | None:
        """Give the answer kept under `key`; None too where Redis does not answer in time."""
        if self._is_left_alone or time.monotonic() > self._asked_at_s + self._patience_s:
            return None
        loop = asyncio.get_running_loop()
        found = self._wanted.get(key)
        if found is None:
            found = self._wanted[key] = loop.create_future()
        if self._asking is None:
            self._asking = loop.create_task(self._ask())
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.shield(found)
        except TimeoutError:
            return None

    def put(self, key: bytes, answer: bytes) -> None:
        """Keep an answer, later; not while Redis is left alone or behind."""
        if self._is_left_alone or len(self._kept) >= _MAX_PUTS:
            return
        self._kept[key] = answer
        if self._putting is None:
            self._putting = asyncio.get_running_loop().create_task(self._put())

    async def close(self) -> None:
        """Finish what is on its way, and close the connections."""
        await asyncio.gather(*(task for task in (self._asking, self._putting) if task is not None))
        await self._redis.aclose()

    @property
    def _is_left_alone(self) -> bool:
        return time.monotonic() < self._asks_again_at_s

    async def _ask(self) -> None:
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            self._asked_at_s = time.monotonic()
            answers: Sequence[bytes | None] = [None] * len(wanted)
            try:
                if not self._is_left_alone:
                    found_there = await self._redis.mget(list(wanted))
                    answers = [one if isinstance(one, bytes) else None for one in found_there]
            except (RedisError, OSError) as error:
                self._pause(error)
            finally:
                for found, answer in zip(wanted.values(), answers, strict=True):
                    found.set_result(answer)
        self._asking, self._asked_at_s = None, math.inf

    async def _put(self) -> None:
        while self._kept:
            kept, self._kept = self._kept, {}
            try:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for key, answer in kept.items():
                        pipeline.set(key, answer, ex=self._ttl_s)
                    await pipeline.execute()
            except (RedisError, OSError) as error:
                self._pause(error)
        self._putting = None

    def _pause(self, error: Exception) -> None:
        if not self._is_left_alone:
            _log.warning("answers are not shared for %g s: Redis failed with %s", _PAUSE_S, error)
        self._asks_again_at_s = time.monotonic() + _PAUSE_S

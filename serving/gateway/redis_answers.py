"""Answers that several gateways share in a Redis server. A server that is slow, full or gone costs a caller little."""

from __future__ import annotations

import asyncio
import logging
import time

from redis.asyncio import Redis
from redis.exceptions import RedisError

_log = logging.getLogger("rankyard.gateway")

_TIMEOUT_S = 0.02
"""How long a caller waits for Redis; an answer takes less than that to compute."""
_PAUSE_S = 1.0
"""How long Redis is left alone after it failed."""
_MAX_PUTS = 64
"""Answers on their way to Redis at once; beyond them answers are not shared."""


class RedisAnswers:
    """Implements `serving.gateway.cache.SharedAnswers`; belongs to one event loop.

    url: `redis://HOST:PORT/DB`, `rediss://` or `unix://`. ttl_s: how long an answer is kept.
    """

    def __init__(self, url: str, ttl_s: int) -> None:
        self._redis = Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        self._ttl_s = ttl_s
        self._asks_again_at_s = 0.0
        self._puts: set[asyncio.Task[None]] = set()

    async def get(self, key: bytes) -> bytes | None:
        """Give the answer kept under `key`; None too where Redis does not answer in time."""
        if time.monotonic() < self._asks_again_at_s:
            return None
        try:
            answer = await self._redis.get(key)
        except (RedisError, OSError) as error:
            self._pause(error)
            return None
        return answer if isinstance(answer, bytes) else None

    def put(self, key: bytes, answer: bytes) -> None:
        """Keep an answer, later; not while Redis is left alone or behind."""
        if time.monotonic() < self._asks_again_at_s or len(self._puts) >= _MAX_PUTS:
            return
        task = asyncio.get_running_loop().create_task(self._put(key, answer))
        self._puts.add(task)
        task.add_done_callback(self._puts.discard)

    async def close(self) -> None:
        """Finish what is on its way, and close the connections."""
        await asyncio.gather(*self._puts)
        await self._redis.aclose()

    async def _put(self, key: bytes, answer: bytes) -> None:
        try:
            await self._redis.set(key, answer, ex=self._ttl_s)
        except (RedisError, OSError) as error:
            self._pause(error)

    def _pause(self, error: Exception) -> None:
        self._asks_again_at_s = time.monotonic() + _PAUSE_S
        _log.warning("answers are not shared for %g s: Redis failed with %s", _PAUSE_S, error)

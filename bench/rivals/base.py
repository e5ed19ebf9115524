"""The interface of a rival: a lock that waits, as its users write it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import redis
import redis.asyncio

# redis-py's asyncio pool raises if more tasks send requests than it has connections, so all rivals
# on it get the pool that waits. More connections than this make all of them slower here.
POOL, POOL_WAIT_S = 50, 60.0


class Rival(ABC):
    """One way to lock, for one process; ``ttl_s`` is the lease of rivals that have one."""

    def __init__(self, url: str, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self.client: Any = redis.Redis.from_url(url)

    @abstractmethod
    def lock(self, key: str) -> AbstractContextManager[object]:
        """Return a lock for ``with``, for repeated use by one thread at a time."""

    def pair(self, key: str) -> Callable[[], object]:
        """Return a function that acquires and releases once, in the shortest way of its users."""
        lock = self.lock(key)

        def use() -> None:
            with lock:
                pass

        return use

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


class TaskRival(ABC):
    """The same for asyncio: made, used and closed in one event loop."""

    def __init__(self, url: str, ttl_s: float) -> None:
        self.url, self.ttl_s = url, ttl_s

    @abstractmethod
    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        """Return a lock for one ``async with``."""

    def reusable(self, key: str) -> Callable[[], AbstractAsyncContextManager[object]]:
        """Return a function that gives a lock for each use: by default a new one."""
        return lambda: self.lock(key)

    async def close(self) -> None:  # noqa: B027 - some have nothing to close
        """Close the connections."""


class OnRedisPy(TaskRival):
    """A rival that uses a client of redis-py."""

    def __init__(self, url: str, ttl_s: float) -> None:
        super().__init__(url, ttl_s)
        self._pool: Any = redis.asyncio.BlockingConnectionPool.from_url(
            url, max_connections=POOL, timeout=POOL_WAIT_S
        )
        self.client: Any = redis.asyncio.Redis(connection_pool=self._pool)

    async def close(self) -> None:
        closing: Awaitable[None] = self.client.aclose()
        await closing
        await self._pool.disconnect()

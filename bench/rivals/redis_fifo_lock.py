"""redis-fifo-lock: a queue in Lua, ``BLPOP`` to wait, and renewal. asyncio only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from bench.rivals import apart
from bench.rivals.base import OnRedisPy

_theirs = apart.load("redis-fifo-lock", "redis_fifo_lock")


class RedisFifoLock(OnRedisPy):
    """The most similar one: strict order, fences, one script each. asyncio only, so each of its
    processes in a crowd runs an event loop."""

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        return self.reusable(key)()

    def reusable(self, key: str) -> Callable[[], AbstractAsyncContextManager[object]]:
        own = _theirs.FifoLock(self.client, key, lease_ms=round(self.ttl_s * 1000))
        hold: Callable[[], AbstractAsyncContextManager[object]] = own.hold
        return hold

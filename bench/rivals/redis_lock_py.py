"""redis-lock-py: ``SET NX`` with pub/sub to wait and a script to release."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager, AbstractContextManager

from bench.rivals import apart
from bench.rivals.base import OnRedisPy, Rival

_sync = apart.load("redis-lock-py", "redis_lock")
_aio = apart.load("redis-lock-py", "redis_lock.asyncio")


class RedisLockPy(Rival):
    """As installed: a waiter is subscribed. Its leases are whole seconds (by default: none)."""

    def lock(self, key: str) -> AbstractContextManager[object]:
        found: AbstractContextManager[object] = _sync.RedisLock(
            self.client, key, expire_timeout=math.ceil(self.ttl_s)
        )
        return found


class RedisLockPyAio(OnRedisPy):
    """Its asyncio lock, on the pool that waits; each waiter has a connection."""

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        found: AbstractAsyncContextManager[object] = _aio.RedisLock(
            self.client, key, expire_timeout=math.ceil(self.ttl_s)
        )
        return found

"""redis-lock-py: ``SET NX`` with pub/sub to wait and a script to release."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager, AbstractContextManager

from bench.rivals import apart
from bench.rivals.base import OnRedisPy, Rival

_sync = apart.load("redis-lock-py", "redis_lock")
_aio = apart.load("redis-lock-py", "redis_lock.asyncio")


class RedisLockPy(Rival):
    """Its leases are whole seconds, and by default there are none."""

    def lock(self, key: str) -> AbstractContextManager[object]:
        found: AbstractContextManager[object] = _sync.RedisLock(
            self.client, key, expire_timeout=math.ceil(self.ttl_s)
        )
        return found


class RedisLockPyAio(OnRedisPy):
    """The same for asyncio: each who waits has a connection."""

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        found: AbstractAsyncContextManager[object] = _aio.RedisLock(
            self.client, key, expire_timeout=math.ceil(self.ttl_s)
        )
        return found

"""redis-py's ``Lock``, sync and asyncio."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, ClassVar

from bench.rivals.base import OnRedisPy, Rival


class RedisPy(Rival):
    """As installed: a waiter polls each 100 ms."""

    sleep_s: ClassVar[float] = 0.1

    def _lock(self, key: str) -> Any:
        return self.client.lock(key, timeout=self.ttl_s, sleep=self.sleep_s)

    def lock(self, key: str) -> AbstractContextManager[object]:
        found: AbstractContextManager[object] = self._lock(key)
        return found

    def pair(self, key: str) -> Callable[[], object]:
        lock = self._lock(key)
        return lambda: (lock.acquire(), lock.release())


class RedisPyTuned(RedisPy):
    """Its best settings: a waiter polls each millisecond."""

    sleep_s = 0.001


class RedisPyAio(OnRedisPy):
    """Its asyncio ``Lock``, on the pool that waits."""

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        found: AbstractAsyncContextManager[object] = self.client.lock(key, timeout=self.ttl_s)
        return found

    def reusable(self, key: str) -> Callable[[], AbstractAsyncContextManager[object]]:
        own = self.lock(key)
        return lambda: own

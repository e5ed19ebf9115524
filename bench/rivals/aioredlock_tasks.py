"""aioredlock: Redlock on aioredis 1. It is not maintained, and needs Python before 3.12."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import aioredlock  # type: ignore[import-untyped]  # a rival

from bench.rivals.base import TaskRival


class _Lock:
    """A lock that one call makes and acquires."""

    def __init__(self, manager: Any, key: str, ttl_s: float) -> None:
        self._manager, self._key, self._ttl_s = manager, key, ttl_s

    async def __aenter__(self) -> None:
        self._held = await self._manager.lock(self._key, lock_timeout=self._ttl_s)

    async def __aexit__(self, *_: object) -> None:
        await self._manager.unlock(self._held)


class Aioredlock(TaskRival):
    """On aioredis 1, here on a single server."""

    def __init__(self, url: str, ttl_s: float) -> None:
        super().__init__(url, ttl_s)
        self._manager = aioredlock.Aioredlock([url])

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        return _Lock(self._manager, key, self.ttl_s)

    async def close(self) -> None:
        await self._manager.destroy()

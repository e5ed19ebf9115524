"""lualock, as its users write it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import ClassVar

import lualock
from bench.rivals.base import Rival, TaskRival
from lualock import aio


class Lualock(Rival):
    """With an explicit ttl, as most rivals have one."""

    renewed: ClassVar[bool] = False

    def __init__(self, url: str, ttl_s: float) -> None:
        super().__init__(url, ttl_s)
        self.locks = lualock.connect(url)

    def _lock(self, key: str) -> lualock.Lock:
        return self.locks.lock(key) if self.renewed else self.locks.lock(key, ttl=self.ttl_s)

    def lock(self, key: str) -> AbstractContextManager[object]:
        return self._lock(key)

    def pair(self, key: str) -> Callable[[], object]:
        lock = self._lock(key)
        return lambda: lock.acquire().release()

    def close(self) -> None:
        super().close()
        self.locks.close()


class LualockRenewed(Lualock):
    """The default: no ttl, renewed for as long as it is held."""

    renewed = True


class LualockAio(TaskRival):
    """With an explicit ttl; one connection, however many tasks."""

    def __init__(self, url: str, ttl_s: float) -> None:
        super().__init__(url, ttl_s)
        self.locks = aio.connect(url)

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        return self.locks.lock(key, ttl=self.ttl_s)

    def reusable(self, key: str) -> Callable[[], AbstractAsyncContextManager[object]]:
        own = self.lock(key)
        return lambda: own

    async def close(self) -> None:
        await self.locks.aclose()

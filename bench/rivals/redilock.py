"""python-redilock: ``SET NX PX``, a script to release, and polling. It makes its own client."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, ClassVar
from urllib.parse import urlsplit

import redilock.async_redilock  # type: ignore[import-untyped]  # a rival
import redilock.sync_redilock  # type: ignore[import-untyped]  # a rival

from bench.rivals.base import Rival, TaskRival


def _address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme != "redis":
        raise ValueError("python-redilock knows TCP only")
    return {"redis_host": parts.hostname, "redis_port": parts.port}


class _Reusable:
    """Makes a context manager for each use, because that of the rival works once."""

    def __init__(self, locks: Any, key: str) -> None:
        self._locks, self._key = locks, key

    def __enter__(self) -> None:
        self._used = self._locks(self._key)
        self._used.__enter__()

    def __exit__(self, *error: object) -> None:
        self._used.__exit__(*error)


class Redilock(Rival):
    """As installed: a waiter polls each 250 ms."""

    interval_s: ClassVar[float] = 0.25

    def __init__(self, url: str, ttl_s: float) -> None:
        super().__init__(url, ttl_s)
        self._locks = redilock.sync_redilock.DistributedLock(
            ttl=ttl_s, interval=self.interval_s, **_address(url)
        )

    def lock(self, key: str) -> AbstractContextManager[object]:
        return _Reusable(self._locks, key)


class RedilockTuned(Redilock):
    """Its best settings: a waiter polls each millisecond."""

    interval_s = 0.001


class RedilockAio(TaskRival):
    """Its asyncio lock, on a client that it makes itself."""

    def __init__(self, url: str, ttl_s: float) -> None:
        super().__init__(url, ttl_s)
        self._locks = redilock.async_redilock.DistributedLock(ttl=ttl_s, **_address(url))

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        found: AbstractAsyncContextManager[object] = self._locks(key)
        return found

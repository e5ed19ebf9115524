"""pottery's Redlock, here on a single server: it sends requests to its masters by a pool of
threads."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager

import pottery

from bench.rivals.base import OnRedisPy, Rival


class Pottery(Rival):
    """``Redlock`` on a single server; a waiter polls after up to 200 ms."""

    def lock(self, key: str) -> AbstractContextManager[object]:
        return pottery.Redlock(key=key, masters={self.client}, auto_release_time=self.ttl_s)


class PotteryAio(OnRedisPy):
    """``AIORedlock`` on a single server, on the pool that waits."""

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        return pottery.AIORedlock(key=key, masters={self.client}, auto_release_time=self.ttl_s)

"""python-redis-lock: ``SETNX`` with ``BLPOP`` to wait and a script to release."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import redis_lock  # type: ignore[import-untyped]  # a rival

from bench.rivals.base import Rival


class PythonRedisLock(Rival):
    """As installed: a waiter is in ``BLPOP``. Its leases are whole seconds."""

    def lock(self, key: str) -> AbstractContextManager[object]:
        lease_s = math.ceil(self.ttl_s)
        found: AbstractContextManager[object] = redis_lock.Lock(self.client, key, expire=lease_s)
        return found

"""Ways to lock that make single attempts, for the races: the same verbs each.

``take`` makes one attempt and returns until when the caller may believe that it has the lock
(``None``: not acquired), on CLOCK_MONOTONIC in seconds, counted from before the request was sent.
``give`` releases it. ``still_mine`` reads it from the server. ``now`` is the client's wall clock,
which only one rival reads.

"""

from __future__ import annotations

import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import redis

import lualock
from bench.rivals.plain import COMPARE_AND_DELETE

Clock = Callable[[], float]


class Rival(ABC):
    """One way to lock, for one process. ``ttl_s`` is the lease of rivals that have one."""

    name: ClassVar[str]

    def __init__(
        self, url: str, key: str, ttl_s: float, owner: str, now: Clock = time.time
    ) -> None:
        self.client: Any = redis.Redis.from_url(url)
        self.key, self.ttl_s, self.owner, self.now = key, ttl_s, owner, now

    @abstractmethod
    def take(self) -> float | None:
        """Make one attempt."""

    @abstractmethod
    def give(self) -> None:
        """Release the lock."""

    def still_mine(self) -> bool:
        """Whether the server's lock is this worker's."""
        value = self.client.get(self.key)
        return value is not None and value.decode().endswith(self.owner)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


class SetNx(Rival):
    """``SETNX``, then ``DEL``: no lease, no owner."""

    name = "SETNX + DEL"

    def take(self) -> float | None:
        return math.inf if self.client.setnx(self.key, self.owner) else None

    def give(self) -> None:
        self.client.delete(self.key)


class Timestamp(Rival):
    """The old ``SETNX``/``GET``/``GETSET`` algorithm: the value is the end of the lease by the
    client's clock. A client that finds it ended replaces it, and has the lock if the replaced value
    had ended, too. The release is a ``DEL`` if, by its own clock, the lease has not ended: as in
    Ruby's resque-lock."""

    name = "SETNX/GET/GETSET timestamps"

    def take(self) -> float | None:
        believed = time.monotonic() + self.ttl_s
        self._ends = self.now() + self.ttl_s
        value = f"{self._ends}:{self.owner}"
        if self.client.setnx(self.key, value):
            return believed
        if not self._ended(self.client.get(self.key)):
            return None
        return believed if self._ended(self.client.getset(self.key, value)) else None

    def _ended(self, value: bytes | None) -> bool:
        return value is None or float(value.split(b":")[0]) < self.now()

    def give(self) -> None:
        if self.now() < self._ends:
            self.client.delete(self.key)


class SetNxPx(Rival):
    """``SET NX PX``, then an unconditional ``DEL``: a lease, but no owner."""

    name = "SET NX PX + DEL"

    def take(self) -> float | None:
        believed = time.monotonic() + self.ttl_s
        taken = self.client.set(self.key, self.owner, nx=True, px=round(self.ttl_s * 1000))
        return believed if taken else None

    def give(self) -> None:
        self.client.delete(self.key)


class CompareAndDelete(Rival):
    """``SET NX PX``, and a script that deletes the key if its value is the client's."""

    name = "SET NX PX + compare-and-delete"

    def take(self) -> float | None:
        believed = time.monotonic() + self.ttl_s
        self._token = f"{secrets.token_hex(16)}:{self.owner}"
        taken = self.client.set(self.key, self._token, nx=True, px=round(self.ttl_s * 1000))
        return believed if taken else None

    def give(self) -> None:
        self.client.eval(COMPARE_AND_DELETE, 1, self.key, self._token)


class RedisPy(Rival):
    """redis-py's ``Lock``."""

    name = "redis-py Lock"

    def __init__(
        self, url: str, key: str, ttl_s: float, owner: str, now: Clock = time.time
    ) -> None:
        super().__init__(url, key, ttl_s, owner, now)
        self._lock = self.client.lock(key, timeout=ttl_s)

    def take(self) -> float | None:
        believed = time.monotonic() + self.ttl_s
        return believed if self._lock.acquire(blocking=False) else None

    def give(self) -> None:
        try:
            self._lock.release()
        except redis.exceptions.LockError:
            return  # the lease had ended, which is reported

    def still_mine(self) -> bool:
        return bool(self._lock.owned())


class Lualock(Rival):
    """lualock with an explicit ttl."""

    name = "lualock"

    def __init__(
        self, url: str, key: str, ttl_s: float, owner: str, now: Clock = time.time
    ) -> None:
        super().__init__(url, key, ttl_s, owner, now)
        self._locks = lualock.connect(url, holder=owner)
        self._lock = self._locks.lock(key, ttl=ttl_s)

    def take(self) -> float | None:
        lease = self._lock.try_acquire()
        if lease is None:
            return None
        self._lease = lease
        return time.monotonic() + lease.remaining()

    def give(self) -> None:
        try:
            self._lease.release()
        except lualock.LeaseLost:
            return  # the lease had ended, which is reported: no other lock was deleted

    def still_mine(self) -> bool:
        return self._lock.inspect().fence == self._lease.fence

    def close(self) -> None:
        super().close()
        self._locks.close()

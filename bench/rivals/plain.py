"""Locks that people write themselves, on redis-py.

A waiter polls each millisecond: the best for its waiting time, and the worst for the server.

"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from bench.rivals.base import Rival

POLL_S = 0.001
COMPARE_AND_DELETE = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)


class Polling:
    """Waits by polling."""

    def __init__(self, take: Callable[[], Any], give: Callable[[], object]) -> None:
        self._take, self._give = take, give

    def __enter__(self) -> None:
        while not self._take():
            time.sleep(POLL_S)

    def __exit__(self, *_: object) -> None:
        self._give()


class Plain(Rival):
    """Two verbs of one request each."""

    def verbs(self, key: str) -> tuple[Callable[[], Any], Callable[[], object]]:
        """Return what acquires the lock if it is free, and what releases it."""
        raise NotImplementedError

    def lock(self, key: str) -> AbstractContextManager[object]:
        return Polling(*self.verbs(key))

    def pair(self, key: str) -> Callable[[], object]:
        take, give = self.verbs(key)
        return lambda: (take(), give())


class SetNx(Plain):
    """``SETNX``, then ``DEL``: no lease, no owner. A waiter polls each millisecond."""

    def verbs(self, key: str) -> tuple[Callable[[], Any], Callable[[], object]]:
        client = self.client
        return lambda: client.setnx(key, "1"), lambda: client.delete(key)


class Timestamp(Plain):
    """The old ``SETNX``/``GETSET`` algorithm: the value is the end of the lease by the client's
    clock. A client that finds it ended replaces it, and has the lock if the replaced value had
    ended, too. A waiter polls each millisecond."""

    def verbs(self, key: str) -> tuple[Callable[[], Any], Callable[[], object]]:
        client = self.client

        def ended(value: bytes | None) -> bool:
            return value is None or float(value) < time.time()

        def take() -> bool:
            ends = repr(time.time() + self.ttl_s)
            return bool(client.setnx(key, ends)) or (
                ended(client.get(key)) and ended(client.getset(key, ends))
            )

        return take, lambda: client.delete(key)


class CompareAndDelete(Plain):
    """``SET NX PX``, and a script that deletes the key if the token is the client's: the least that
    a lease with an owner needs. A waiter polls each millisecond."""

    def verbs(self, key: str) -> tuple[Callable[[], Any], Callable[[], object]]:
        client, ttl_ms = self.client, round(self.ttl_s * 1000)
        script = client.register_script(COMPARE_AND_DELETE)
        token = ""

        def take() -> Any:
            nonlocal token
            token = secrets.token_hex(16)
            return client.set(key, token, nx=True, px=ttl_ms)

        return take, lambda: script(keys=[key], args=[token])

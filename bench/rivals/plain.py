"""What people write themselves, on redis-py. Who does not get the lock looks again each
millisecond: the best that these can do for the time they wait, and the worst for the server."""

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
    """Waits by looking again and again."""

    def __init__(self, take: Callable[[], Any], give: Callable[[], object]) -> None:
        self._take, self._give = take, give

    def __enter__(self) -> None:
        while not self._take():
            time.sleep(POLL_S)

    def __exit__(self, *_: object) -> None:
        self._give()


class Plain(Rival):
    """Two verbs that ask the server once."""

    def verbs(self, key: str) -> tuple[Callable[[], Any], Callable[[], object]]:
        """What takes the lock if it is free, and what gives it back."""
        raise NotImplementedError

    def lock(self, key: str) -> AbstractContextManager[object]:
        return Polling(*self.verbs(key))

    def pair(self, key: str) -> Callable[[], object]:
        take, give = self.verbs(key)
        return lambda: (take(), give())


class SetNx(Plain):
    """``SETNX``, then ``DEL``: no lease, no owner. Who waits looks again each millisecond."""

    def verbs(self, key: str) -> tuple[Callable[[], Any], Callable[[], object]]:
        client = self.client
        return lambda: client.setnx(key, "1"), lambda: client.delete(key)


class Timestamp(Plain):
    """The old ``SETNX``/``GETSET`` algorithm: the value is when the lease ends, by the client's
    clock; who finds it ended replaces it, and has won if it had still ended then. Who waits looks
    again each millisecond."""

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
    """``SET NX PX``, and a script that deletes if the token is still ours: the least that a lease
    with an owner needs. Who waits looks again each millisecond."""

    def verbs(self, key: str) -> tuple[Callable[[], Any], Callable[[], object]]:
        client, ttl_ms = self.client, round(self.ttl_s * 1000)
        script = client.register_script(COMPARE_AND_DELETE)
        token = ""

        def take() -> Any:
            nonlocal token
            token = secrets.token_hex(16)
            return client.set(key, token, nx=True, px=ttl_ms)

        return take, lambda: script(keys=[key], args=[token])

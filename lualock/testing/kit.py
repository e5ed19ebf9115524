"""What a test asks about locks, and does to them, from outside of the code that it tests."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

from lualock import _sync as sync
from lualock import aio
from lualock._core.keys import DEFAULT_PREFIX
from lualock.errors import InvalidArgument
from lualock.testing.elsewhere import OtherProcess

AnyLock = sync.Lock | aio.Lock

LIMIT_S = 10.0


class LockKit:
    """The locks of one server. Where a lock is asked for, its name does as well.

    Everything here is plain code also in tests of asyncio.
    """

    def __init__(self, url: str, *, prefix: str = DEFAULT_PREFIX) -> None:
        self._url, self._prefix = url, prefix
        self._locks = sync.connect(url, prefix=prefix)
        self._others: list[OtherProcess] = []

    def __enter__(self) -> LockKit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for other in self._others:
            other.kill()
        self._locks.close()

    def lock(self, lock: AnyLock | str | bytes) -> sync.Lock:
        """The same lock, for this kit."""
        if isinstance(lock, str | bytes):
            return self._locks.lock(lock)
        if _where(lock) != _where(self._locks.lock("x")):
            raise InvalidArgument(
                f"lock {lock.name!r} is not on the server of this kit: before the program under "
                "test is imported, the environment must have LUALOCK_URL, or whatever tells it "
                "its server, set to the URL of the fixture lualock_server; or give the job its "
                "locks in the test (monkeypatch)"
            )
        theirs = lock._locks._settings.prefix
        if theirs != self._locks._settings.prefix:
            raise InvalidArgument(f"that is a lock of the prefix {theirs!r}: make a LockKit for it")
        same = self._locks.lock(lock._name)
        same._key, same._queue = lock._key, lock._queue  # those of a queued job's place are its own
        return same

    def assert_locked(self, lock: AnyLock | str | bytes, *, metadata: str | None = None) -> None:
        """Somebody has the lock (and said this about it)."""
        __tracebackhide__ = True
        info = self.lock(lock).inspect()
        assert info.held, f"lock {info.name!r} is not held"
        assert metadata in (None, info.metadata), (
            f"lock {info.name!r} is held with the metadata {info.metadata!r}"
        )

    def assert_free(self, lock: AnyLock | str | bytes) -> None:
        """Nobody has the lock."""
        __tracebackhide__ = True
        info = self.lock(lock).inspect()
        assert not info.held, f"not free: {info}"

    def assert_waiters(self, lock: AnyLock | str | bytes, count: int) -> None:
        """So many wait for the lock; it may take a moment until they do."""
        __tracebackhide__ = True
        give_up = time.monotonic() + LIMIT_S
        while (waiters := self.lock(lock).inspect().waiters) != count:
            assert time.monotonic() < give_up, f"{waiters} wait, not {count}"
            time.sleep(0.005)

    def held_elsewhere(
        self, lock: AnyLock | str | bytes, *, ttl: float | None = None, metadata: str = ""
    ) -> OtherProcess:
        """Have another process take the lock; it has it when this returns.

        It gives it back at the end of a ``with``, or when told to. :meth:`OtherProcess.kill` is a
        crash: the lock stays until its lease ends, or until :meth:`expire`.

        The place of a queued job can be held, too (``jobs.bound(job).place(args)``): who enqueues
        that job meanwhile is refused. With ``metadata="job 7"`` it is told that job ``7`` is there.

        :param ttl: seconds that its lease lasts; left out, it is renewed.
        """
        found = self.lock(lock)
        other = OtherProcess(self._url, self._prefix, found._name, found.key, ttl, metadata)
        self._others.append(other)
        return other

    def expire(self, lock: AnyLock | str | bytes) -> None:
        """End the lease of whoever has the lock, as its time would.

        Its holder is told as ever: by the next request for that lease. Who waits for the lock does
        not know, and looks when it expected the lease to end.
        """
        found = self.lock(lock)
        with self._client() as client:
            client.pexpire(found.key, 1)
            _until(lambda: not client.exists(found.key))

    def advance(self, seconds: float) -> None:
        """Let so much time pass for all leases of this server: those that had less left end.

        It is the server's view of them that changes; clocks go on as ever.

        :raises InvalidArgument: time does not go backwards.
        """
        if not 0 <= seconds < math.inf:
            raise InvalidArgument(f"seconds must be 0 or more, and not {seconds!r}")
        passed_ms = math.ceil(seconds * 1000)
        ended = []
        with self._client() as client:
            for key in client.scan_iter(match=f"{self._prefix}:*"):
                left_ms = client.pttl(key)
                if left_ms > passed_ms:
                    client.pexpire(key, left_ms - passed_ms)
                elif left_ms >= 0:
                    client.pexpire(key, 1)
                    ended.append(key)
            _until(lambda: not any(client.exists(key) for key in ended))

    def _client(self) -> Any:
        import redis

        return redis.Redis.from_url(self._url)


def _where(lock: AnyLock) -> tuple[object, int]:
    """Which server and database a lock is on, whether that was said or left to redis-py."""
    told = lock._locks._endpoint.settings
    server = told.get("path") or (told.get("host") or "localhost", int(told.get("port") or 6379))
    return server, int(told.get("db") or 0)


def _until(condition: Any) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up, "the server does not end a key whose time is over"
        time.sleep(0.001)

"""``LockKit``: check, hold and expire locks in a test, from outside of the code under test."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

from lualock import _sync as sync
from lualock import aio
from lualock._core import options
from lualock._core.keys import DEFAULT_PREFIX
from lualock._core.options import Seconds
from lualock.errors import InvalidArgument
from lualock.testing.other_process import OtherProcess

AnyLock = sync.Lock | aio.Lock

_LIMIT_S = 10.0


class LockKit:
    """The locks of one server. Each parameter ``lock`` takes a lock or its name.

    All methods are plain functions, also in tests of asyncio.
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
        """Return the same lock, among the locks of this kit."""
        if isinstance(lock, str | bytes):
            return self._locks.lock(lock)
        theirs = lock.locks
        if theirs.server != self._locks.server:
            raise InvalidArgument(
                f"could not use lock {lock.name!r}: it is not on the server of this kit. Before "
                "the program under test is imported, set LUALOCK_URL, or the program's own "
                "setting, to the URL of the fixture lualock_server; or give the job its locks in "
                "the test (monkeypatch)"
            )
        if theirs.prefix != self._locks.prefix:
            raise InvalidArgument(
                f"could not use lock {lock.name!r}: it has another prefix, {theirs.prefix!r}. "
                "Make a LockKit with that prefix"
            )
        same: sync.Lock = self._locks.lock_at(lock.key)  # by name, a reservation would be its lock
        return same

    def assert_locked(self, lock: AnyLock | str | bytes, *, metadata: str | None = None) -> None:
        """Check that the lock is held (with this metadata)."""
        __tracebackhide__ = True
        info = self.lock(lock).inspect()
        assert info.held, f"lock {info.name!r} is not held"
        assert metadata in (None, info.metadata), (
            f"lock {info.name!r} is held with the metadata {info.metadata!r}"
        )

    def assert_free(self, lock: AnyLock | str | bytes) -> None:
        """Check that the lock is free."""
        __tracebackhide__ = True
        info = self.lock(lock).inspect()
        assert not info.held, f"lock {info.name!r} is not free: {info}"

    def assert_waiters(self, lock: AnyLock | str | bytes, count: int) -> None:
        """Check that the lock has ``count`` waiters; wait some seconds until it has."""
        __tracebackhide__ = True
        give_up_at = time.monotonic() + _LIMIT_S
        while (waiters := self.lock(lock).inspect().waiters) != count:
            assert time.monotonic() < give_up_at, f"the lock has {waiters} waiters, not {count}"
            time.sleep(0.005)

    def held_elsewhere(
        self, lock: AnyLock | str | bytes, *, ttl: Seconds | None = None, metadata: str = ""
    ) -> OtherProcess:
        """Make another process hold the lock, and return when it does.

        The process releases the lock at the end of a ``with`` block, or with
        :meth:`OtherProcess.release`. :meth:`OtherProcess.kill` is a crash: the lock stays until its
        lease expires, or until :meth:`expire`.

        It can also hold the reservation of a queued job (``jobs.adapter(job).reservation(args)``).
        Enqueueing that job is then refused; with ``metadata="job 7"``, because of job ``7``.

        :param ttl: seconds that the lease lasts; left out, the lease is renewed.
        """
        other = OtherProcess(self._url, self._prefix, self.lock(lock).key, ttl, metadata)
        self._others.append(other)
        return other

    def expire(self, lock: AnyLock | str | bytes) -> None:
        """Expire the lease of the lock's holder now.

        The holder notices at its next request for that lease. A waiter does not notice, and checks
        when it expected the lease to expire.
        """
        key = self.lock(lock).key
        with self._client() as client:
            client.pexpire(key, 1)
            _wait_until(lambda: not client.exists(key))

    def advance(self, seconds: Seconds) -> None:
        """Let time pass for all leases on this server; those with less time left expire.

        Only the server's expiry times change. Clocks do not.

        :raises InvalidArgument: ``seconds`` is negative.
        """
        passed_s = options.seconds(seconds, "seconds")
        if not 0 <= passed_s < math.inf:
            raise InvalidArgument(f"seconds must be 0 or more, not {passed_s!r}")
        passed_ms = math.ceil(passed_s * 1000)
        expired = []
        with self._client() as client:
            for key in client.scan_iter(match=f"{self._prefix}:*"):
                left_ms = client.pttl(key)
                if left_ms > passed_ms:
                    client.pexpire(key, left_ms - passed_ms)
                elif left_ms >= 0:
                    client.pexpire(key, 1)
                    expired.append(key)
            _wait_until(lambda: not any(client.exists(key) for key in expired))

    def _client(self) -> Any:
        import redis

        return redis.Redis.from_url(self._url)


def _wait_until(condition: Any) -> None:
    give_up_at = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < give_up_at, "the server does not expire a key whose time is over"
        time.sleep(0.001)

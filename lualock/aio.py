"""Layer 4: the shell for asyncio. ``sync`` is its twin: same names, same order."""

from __future__ import annotations

import asyncio
import math
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lualock import fork, options, protocol
from lualock.drive.asynchronous import AsyncDriver
from lualock.drive.endpoint import Endpoint
from lualock.errors import NotAcquired
from lualock.find import find_server
from lualock.keys import DEFAULT_PREFIX
from lualock.lease import BaseLease, Entered
from lualock.protocol import LockInfo
from lualock.renewal import Renewals, log
from lualock.wish import BaseLock, BaseLocks, Settings

if TYPE_CHECKING:
    import redis.asyncio

__all__ = ["Lease", "Lock", "Locks", "connect"]


class Lease(BaseLease):
    """A held lock. Use it as an async context manager, or await :meth:`release`."""

    __slots__ = ()
    _driver: AsyncDriver
    _renewal: _RenewalTimer | None

    async def release(self) -> None:
        """Give the lock back. Releasing a second time does nothing.

        :raises LeaseLost: the lease had ended before: somebody else may have, or have had, the
            lock. Nothing was changed.
        :raises LockUnavailable: the server did not answer. The lease is not renewed any more,
            so the lock is free at the latest when its ttl ends.
        """
        if self._renewal is not None:
            self._renewal.drop(self)
        steps = self._release()
        if steps is not None:
            await self._driver.run(steps)

    async def extend(self, ttl: float) -> None:
        """Let the lease last ``ttl`` seconds from now on, whatever was left of it.

        :raises LeaseLost: the lease had ended, or was released, before. Nothing was changed.
        :raises InvalidArgument: ``ttl`` is not from 0.001 s to 366 days.
        """
        await self._driver.run(self._extend(options.ttl_ms(ttl)))

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._renewal is not None:
            self._renewal.drop(self)
        steps = self._release()
        if steps is not None:
            await self._driver.run(steps if error is None else protocol.leave(steps, error))


class Lock(BaseLock):
    """A wish for a lock: reusable, stateless, safe to share between tasks."""

    __slots__ = ("_entered", "_locks")

    def __init__(
        self,
        locks: Locks,
        name: str | bytes,
        ttl: float | None = None,
        renew: bool | None = None,
        metadata: str = "",
        fair: bool = True,
        priority: int = 0,
        max_waiters: int | None = None,
    ) -> None:
        super().__init__(locks._settings, name, ttl, renew, metadata, fair, priority, max_waiters)
        self._locks = locks
        self._entered = Entered()

    async def acquire(self, timeout: float | None = None) -> Lease:
        """Take the lock, waiting up to ``timeout`` seconds (``None``: for ever; 0: one try).

        Those who wait get it in turn; none of them polls.

        :raises NotAcquired: somebody else still had it when the time was over; the error says who.
        :raises QueueFull: as many wait already as ``max_waiters`` allows.
        :raises LockUnavailable: the server cannot be reached, or refuses.
        :raises KeyConflict: the lock's key holds something that lualock did not write.
        """
        driver = self._locks._driver
        ask = self._ask()
        try:
            steps = protocol.acquire(ask, driver.server_clock, options.wait_s(timeout))
            grant = await driver.run(steps)
            self._crowded = grant.waited
            return Lease(ask, grant, driver, self._locks._renewal() if self._renew else None)
        except BaseException:
            if ask.grant is not None:  # won, and interrupted before anybody heard of it
                await driver.run(protocol.undo(ask))
            raise

    async def try_acquire(self) -> Lease | None:
        """Take the lock if it is free now; ``None`` if somebody has it. Never waits.

        :raises LockUnavailable: the server cannot be reached, or refuses.
        """
        try:
            return await self.acquire(timeout=0)
        except NotAcquired:
            return None

    async def locked(self) -> bool:
        """Whether anybody has the lock now."""
        return (await self.inspect()).held

    async def inspect(self) -> LockInfo:
        """Who has the lock, since when, for how long, with which fence and metadata."""
        return await self._locks._driver.run(protocol.inspect(self._name, self._key, self._queue))

    async def __aenter__(self) -> Lease:
        lease = await self.acquire()
        self._entered.push(asyncio.current_task(), lease)
        return lease

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        lease: Lease = self._entered.pop(asyncio.current_task())
        await lease.__aexit__(kind, error, trace)


class Locks(BaseLocks):
    """The locks of one server, for coroutines.

    :param client: a ``redis.asyncio.Redis``. Only its connection settings are used, never itself.
    :param prefix: what every key begins with. Programs exclude each other under one prefix.
    :param ttl: how long a lease lasts unless renewed, in seconds, for locks that do not say.
    :param holder: how this process is shown to others (default ``host:pid:thread``).
    :raises InvalidArgument: one of these cannot be used.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        prefix: str = DEFAULT_PREFIX,
        ttl: float = options.DEFAULT_TTL_S,
        holder: str | None = None,
    ) -> None:
        endpoint = Endpoint.of_client(client, asynchronous=True)
        self._open(endpoint, None, Settings(prefix, ttl, holder))

    def _open(self, endpoint: Endpoint, keep: Any, settings: Settings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._keep = keep
        self._driver = AsyncDriver(endpoint, settings.prefix)
        self._renewals: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _RenewalTimer] = (
            weakref.WeakKeyDictionary()
        )

    def _renewal(self) -> _RenewalTimer:
        loop = asyncio.get_running_loop()
        found = self._renewals.get(loop)
        if found is None or found.pid != fork.pid:
            found = self._renewals[loop] = _RenewalTimer(self._driver, loop)
            self._driver.at_loop_end(found.close)
        return found

    def lock(
        self,
        name: str | bytes,
        ttl: float | None = None,
        *,
        renew: bool | None = None,
        metadata: str = "",
        fair: bool = True,
        priority: int = 0,
        max_waiters: int | None = None,
    ) -> Lock:
        """The lock of that name. Nothing is sent until it is acquired.

        :param name: any ``str`` or ``bytes`` of 1 to 1024 bytes; ``"a"`` and ``b"a"`` are one.
        :param ttl: seconds that a lease lasts. Given, it is not renewed unless ``renew=True``;
            left out, it is 30 s and renewed until released.
        :param metadata: free text for :meth:`Lock.inspect`, such as why the lock is taken.
        :param fair: ``True``: who waits gets the lock in turn, and a release hands it over.
            ``False``: a release frees it for whoever comes first, and tells the first who waits.
            Use one or the other for all locks of a name.
        :param priority: from -100 to 100; the highest waits at the front of the queue.
        :param max_waiters: how many may wait; who comes then gets :class:`QueueFull`.
        :raises InvalidArgument: one of these cannot be used.
        """
        return Lock(self, name, ttl, renew, metadata, fair, priority, max_waiters)

    async def aclose(self) -> None:
        """Close this loop's idle connections, and give up the embedded server if this uses it."""
        if renewal := self._renewals.pop(asyncio.get_running_loop(), None):
            renewal.close()
        await self._driver.aclose()
        keep, self._keep = self._keep, None
        if keep is not None:
            keep.close()

    async def __aenter__(self) -> Locks:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


def connect(
    server: str | redis.asyncio.Redis | None = None,
    *,
    prefix: str = DEFAULT_PREFIX,
    ttl: float = options.DEFAULT_TTL_S,
    holder: str | None = None,
) -> Locks:
    """The locks of a server, named in whatever way is at hand. Nothing is sent yet.

    :param server: a URL (``redis://``, ``rediss://``, ``unix://``), a ``redis.asyncio.Redis``
        (Sentinel's too), or ``None``: the URL in ``$LUALOCK_URL``, else an embedded server shared
        by all processes of this user (``pip install 'lualock[embedded]'``).
    :raises InvalidArgument: it is none of these.
    :raises EmbeddedUnavailable: nothing is configured and there is no server to embed.

    The other parameters are those of :class:`Locks`. Use it as ``async with connect() as locks``.
    """
    settings = Settings(prefix, ttl, holder)
    return Locks._of(*find_server(server, asynchronous=True), settings)


class _RenewalTimer(Renewals):
    """Renews leases from one timer of the loop, which is set only while there are leases."""

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        self.pid = fork.pid
        self._driver = driver
        self._loop = loop
        self._start_empty()
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.Task[None] | None = None
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._round is not None:
            self._round.cancel()

    def _wake_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wakes_at = due
        if due < math.inf and not self._closed:
            nap_s = max(0.0, due - self._driver.clock())
            self._timer = self._loop.call_later(nap_s, self._start)

    def _start(self) -> None:
        self._timer = None
        self._round = self._driver.spawn(self._renew())

    async def _renew(self) -> None:
        try:
            for lease in self.due(self._driver.clock()):
                try:
                    await self._driver.run(self.renew(lease))
                except Exception:  # a bug must not stop the renewal of the other leases
                    log.exception("renewing lock %r failed", lease.name)
                del lease  # or this loop variable would keep a dropped lease alive
        finally:
            self._round = None
            self._wake_at(self.next_due())

"""Layer 4: the shell for threads. ``aio`` is its twin: same names, same order."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lualock import fork, options, protocol
from lualock.block import Block, begin, block_end, blocks_on, end, inside, last
from lualock.drive.blocking import BlockingDriver
from lualock.drive.endpoint import Endpoint
from lualock.errors import InvalidArgument, NotAcquired
from lualock.find import find_server
from lualock.keys import DEFAULT_PREFIX
from lualock.lease import BaseLease
from lualock.protocol import Ask, Grant, LockInfo, Steps
from lualock.watch import log
from lualock.watch_thread import WatchThread
from lualock.wish import BaseLock, BaseLocks, Settings

if TYPE_CHECKING:
    import redis


_making = fork.Mutex()  # of the event that several threads may wait for


class Lease(BaseLease):
    """A held lock. Use it as a context manager, which raises :class:`LeaseLost` if it is over
    already, or call :meth:`release`."""

    __slots__ = ()
    _driver: BlockingDriver
    _watch: _WatchThread | None

    def release(self) -> None:
        """Give the lock back. Releasing a second time does nothing.

        :raises LeaseLost: the lease had ended before: somebody else may have, or have had, the
            lock. Nothing was changed.
        :raises LockUnavailable: the server did not answer. The lease is over all the same: it is
            given back as soon as the server answers again, if that is within a minute; else it
            ends with its ttl. To release it again may raise ``LeaseLost``.
        """
        if self._watch is not None:
            self._watch.drop(self)
        steps = self._release()
        if steps is not None:
            try:
                self._driver.run(steps)
            finally:
                if self._ended is not None:  # also who began to wait for its loss meanwhile
                    self._ended.set()

    def extend(self, ttl: float) -> None:
        """Let the lease last ``ttl`` seconds from now on, whatever was left of it.

        Who asks for less than is left, and has no answer (:class:`LockUnavailable`), has a lease
        that promises no more than that from then on: the request may arrive at any time.

        :raises LeaseLost: the lease had ended, or was released, before. Nothing was changed.
        :raises InvalidArgument: ``ttl`` is not from 0.001 to 366 days.
        """
        self._driver.run(self._extend(options.ttl_ms(ttl)))

    def release_requested(self) -> bool:
        """Whether somebody has asked for this lease to be released: :meth:`Lock.request_release`.

        One round trip, or two in a job that has a ``read_old``. Who holds a lock for long may ask
        between its steps, and stop if so.

        :raises LockUnavailable: the server did not answer.
        """
        return self._driver.run(self._release_requested())

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until the lease is lost, for up to ``timeout`` seconds (``None``: without an end).

        Returns ``True`` when it is lost, ``False`` when it was released or passed on before, or
        the time is over.
        """
        give_up = self._give_up(timeout)
        while not self.lost:
            if (nap_s := self._nap_s(give_up)) <= 0:
                return False
            with _making.lock:
                if self._ended is None:
                    self._ended = threading.Event()
                ended = self._ended
            ended.wait(min(nap_s, threading.TIMEOUT_MAX))
        return True

    def __enter__(self) -> Lease:
        block = begin(self)
        self.check()  # or the body would run without the lock
        self._enter(block)
        return self

    @block_end
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        block = self._unstated()
        if block is None:
            self._leave(kind, error, trace)
        else:
            end(block, kind, error, trace)

    def _leave(self, _: object, error: BaseException | None, __: object) -> None:
        if not fork.same[0]:
            fork.start_anew()
        if self._passed or self._pid != fork.pid:
            return  # to whoever adopts it; the parent's
        if self._watch is not None:
            self._watch.drop(self)
        if not self._grant.released:
            steps = protocol.release(self._ask, self._grant)
            try:
                self._driver.run(steps if error is None else protocol.leave(steps, error))
            finally:
                if self._ended is not None:
                    self._ended.set()


class Lock(BaseLock):
    """A wish for a lock: reusable, stateless, safe to share between threads."""

    __slots__ = ()
    _locks: Locks

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
        max_hold: float | None = None,
        on_lost: Callable[[Lease], object] | None = None,
    ) -> None:
        if inspect.iscoroutinefunction(on_lost):
            raise InvalidArgument("on_lost of a plain lock must be a plain function")
        queueing = fair, priority, max_waiters
        care = max_hold, on_lost
        super().__init__(locks._settings, name, ttl, renew, metadata, *queueing, *care)
        self._locks = locks

    def acquire(self, timeout: float | None = None) -> Lease:
        """Take the lock, waiting up to ``timeout`` seconds (``None``: for ever; 0: one try).

        Those who wait get it in turn; none of them polls.

        :raises NotAcquired: somebody else still had it when the time was over; the error says who.
        :raises QueueFull: as many wait already as ``max_waiters`` allows.
        :raises SelfDeadlock: ``timeout`` is ``None``, and this thread is inside a ``with`` block of
            the lock, or inside a job that holds it. Nothing was sent.
        :raises LockUnavailable: the server cannot be reached, or refuses.
        :raises KeyConflict: the lock's key holds something that lualock did not write.
        """
        ask = self._ask()
        return self._hold(ask, self._acquire(ask, options.wait_s(timeout)))

    def _hold(self, ask: Ask, steps: Steps[Grant], block: Block | None = None) -> Lease:
        driver, care = self._locks._driver, self._care
        try:
            grant = driver.run(steps)
            self._crowded = grant.waited
            lease = Lease(ask, grant, driver, self._locks._watch if care.needed else None, care)
            if block is not None:
                self._locks._blocks.push(self._key, block, lease, None, self._entered)
            return lease
        except BaseException:
            if ask.grant is not None:  # won, and interrupted before anybody heard of it
                driver.run(protocol.undo(ask))
            raise

    def try_acquire(self) -> Lease | None:
        """Take the lock if it is free now; ``None`` if somebody has it. Never waits.

        :raises LockUnavailable: the server cannot be reached, or refuses.
        """
        try:
            return self.acquire(timeout=0)
        except NotAcquired:
            return None

    def request_release(self, lasts: float = 60.0) -> bool:
        """Ask whoever has the lock to release it, which that one may do, or not.

        Returns whether anybody has it. The holder finds the request by
        :meth:`Lease.release_requested`, within ``lasts`` seconds; who has it after that one is not
        asked. Nothing is waited for.

        :raises LockUnavailable: the server did not answer.
        """
        server = self._locks._driver.server_clock
        return self._locks._driver.run(self._request_release(lasts, server))

    def locked(self) -> bool:
        """Whether anybody has the lock now."""
        return self.inspect().held

    def inspect(self) -> LockInfo:
        """Who has the lock, since when, for how long, with which fence and metadata."""
        return self._locks._driver.run(protocol.inspect(self._name, self._key, self._queue))

    def __enter__(self) -> Lease:
        block = begin(self)
        if inside.get() or self._key in self._locks._blocks.listed:
            self._locks._blocks.refuse_own_wait(self._key)
        ask, server = self._ask(), self._locks._driver.server_clock
        return self._hold(ask, protocol.acquire(ask, server, None), block)

    @block_end
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(last(self._entered), kind, error, trace)


class Locks(BaseLocks):
    """The locks of one server.

    :param client: a ``redis.Redis``. Only its connection settings are used, never itself.
    :param prefix: what every key begins with. Programs exclude each other under one prefix.
    :param ttl: how long a lease lasts unless renewed, in seconds, for locks that do not say.
    :param holder: how this process is shown to others (default ``host:pid:thread``).
    :raises InvalidArgument: one of these cannot be used.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str = DEFAULT_PREFIX,
        ttl: float = options.DEFAULT_TTL_S,
        holder: str | None = None,
    ) -> None:
        endpoint = Endpoint.of_client(client, asynchronous=False)
        self._open(endpoint, None, Settings(prefix, ttl, holder))

    def _open(self, endpoint: Endpoint, keep: Any, settings: Settings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._keep = keep
        self._driver = BlockingDriver(endpoint, settings.prefix)
        self._blocks = self._driver.blocks = blocks_on(endpoint.server)
        self._watch = _WatchThread(self._driver)

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
        max_hold: float | None = None,
        on_lost: Callable[[Lease], object] | None = None,
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
        :param max_hold: for how many seconds a lease is renewed at most, so that a holder that
            hangs does not have the lock for ever. :meth:`Lease.extend` may go beyond it.
        :param on_lost: called with the lease, once, when it is lost before it was released: its
            time is over, by the local clock, or the server said that it is not ours. Not called
            when :meth:`Lease.release` says so, nor for a lease that the program dropped.
            It is called in a thread of its own.
        :raises InvalidArgument: one of these cannot be used.
        """
        return Lock(
            *(self, name, ttl, renew, metadata, fair, priority, max_waiters, max_hold, on_lost),
        )

    def adopt(
        self,
        handle: str,
        *,
        renew: bool | None = None,
        metadata: str = "",
        max_hold: float | None = None,
        on_lost: Callable[[Lease], object] | None = None,
    ) -> Lease:
        """Take over a lease that another process passed on with :meth:`Lease.handle`.

        It lasts its whole ttl from now on, under a new token and a greater fence: whoever had it
        before can neither extend nor release it.

        :param renew: ``None``: renewed if it was before. A ``max_hold`` is not passed on: say it.
        :raises LeaseLost: it has ended, or was released or adopted before.
        :raises InvalidArgument: that is no handle, or one of another prefix.

        The other parameters are those of :meth:`lock`.
        """
        found, name = self._passed_on(handle)
        lock = self.lock(
            name,
            found.ttl_ms / 1000,
            renew=found.renew if renew is None else renew,
            metadata=metadata,
            fair=found.fair,
            max_hold=max_hold,
            on_lost=on_lost,
        )
        ask = lock._ask()
        steps = protocol.adopt(ask, found.token, self._driver.server_clock)
        return lock._hold(ask, steps)

    def close(self) -> None:
        """Close the idle connections, and give up the embedded server if this uses it.

        Leases that are still held are watched as before.
        """
        self._driver.close()
        keep, self._keep = self._keep, None
        if keep is not None:
            keep.close()

    def __enter__(self) -> Locks:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def connect(
    server: str | redis.Redis | None = None,
    *,
    prefix: str = DEFAULT_PREFIX,
    ttl: float = options.DEFAULT_TTL_S,
    holder: str | None = None,
) -> Locks:
    """The locks of a server, named in whatever way is at hand. Nothing is sent yet.

    :param server: a URL (``redis://``, ``rediss://``, ``unix://``), a ``redis.Redis`` (Sentinel's
        too), or ``None``: the URL in ``$LUALOCK_URL``, else an embedded server shared by all
        processes of this user (``pip install 'lualock[embedded]'``).
    :raises InvalidArgument: it is none of these.
    :raises EmbeddedUnavailable: nothing is configured and there is no server to embed.

    The other parameters are those of :class:`Locks`.
    """
    settings = Settings(prefix, ttl, holder)
    return Locks._of(*find_server(server, asynchronous=False), settings)


class _WatchThread(WatchThread):
    """Watches the leases of threads.

    One for each server, not one for all: a server that hangs must not cost the leases of another.
    """

    def _tell(self, lease: BaseLease) -> None:
        if lease._ended is not None:
            lease._ended.set()
        if (on_lost := lease._care.on_lost) is not None:
            # In a thread of its own: whatever it does, the other leases are renewed.
            threading.Thread(
                target=_call, args=(on_lost, lease), name="lualock-lost", daemon=True
            ).start()


def _call(on_lost: Callable[[Lease], object], lease: Lease) -> None:
    try:
        on_lost(lease)
    except Exception:
        log.exception("on_lost of lock %r raised", lease.name)

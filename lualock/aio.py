"""Layer 4: the shell for asyncio. ``sync`` is its twin: same names, same order."""

from __future__ import annotations

import asyncio
import inspect
import math
import weakref
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from lualock import fork, options, protocol
from lualock.block import Block, begin, block_end, blocks_on, end_async, last
from lualock.drive.asynchronous import AsyncDriver
from lualock.drive.blocking import BlockingDriver
from lualock.drive.endpoint import Endpoint
from lualock.errors import InvalidArgument, LockUnavailable, NotAcquired
from lualock.find import find_server
from lualock.keys import DEFAULT_PREFIX
from lualock.lease import BaseLease
from lualock.protocol import LAST_WORD_S, Ask, Batch, Grant, LockInfo, Steps
from lualock.watch import log
from lualock.watch_thread import WatchThread
from lualock.wish import BaseLock, BaseLocks, Settings

if TYPE_CHECKING:
    import redis.asyncio

__all__ = ["Lease", "Lock", "Locks", "connect"]


class Lease(BaseLease):
    """A held lock. Use it as an async context manager, or await :meth:`release`."""

    __slots__ = ("_body",)
    _driver: AsyncDriver
    _body: _Body  # only where it may be cancelled
    _watch: _LoopWatch | None

    async def release(self) -> None:
        """Give the lock back. Releasing a second time does nothing.

        :raises LeaseLost: the lease had ended before: somebody else may have, or have had, the
            lock. Nothing was changed.
        :raises LockUnavailable: the server did not answer. The lease is over all the same: it is
            given back as soon as the server answers again, if that is within a minute and the loop
            still runs; else it ends with its ttl. To release it again may raise ``LeaseLost``.
        """
        if self._watch is not None:
            self._watch.drop(self)
        steps = self._release()
        if steps is not None:
            try:
                await self._driver.run(steps)
            finally:
                self._tell_released()

    async def extend(self, ttl: float) -> None:
        """Let the lease last ``ttl`` seconds from now on, whatever was left of it.

        Who asks for less than is left, and has no answer (:class:`LockUnavailable`), has a lease
        that promises no more than that from then on: the request may arrive at any time.

        :raises LeaseLost: the lease had ended, or was released, before. Nothing was changed.
        :raises InvalidArgument: ``ttl`` is not from 0.001 s to 366 days.
        """
        await self._driver.run(self._extend(options.ttl_ms(ttl)))

    async def release_requested(self) -> bool:
        """Whether somebody has asked for this lease to be released: :meth:`Lock.request_release`.

        One round trip, or two in a job that has a ``read_old``. Who holds a lock for long may ask
        between its steps, and stop if so.

        :raises LockUnavailable: the server did not answer.
        """
        return await self._driver.run(self._release_requested())

    async def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until the lease is lost, for up to ``timeout`` seconds (``None``: without an end).

        Returns ``True`` when it is lost, ``False`` when it was released or passed on before, or
        the time is over.
        """
        give_up = self._give_up(timeout)
        while not self.lost:
            if (nap_s := self._nap_s(give_up)) <= 0:
                return False
            if self._ended is None:
                self._ended = _Event()
            # (wait_for would lose a cancellation that comes together with the event.)
            told = asyncio.ensure_future(self._ended.wait())
            try:
                await asyncio.wait({told}, timeout=min(nap_s, LONGEST_NAP_S))
            finally:
                told.cancel()
        return True

    def _listen_anew(self) -> None:
        if self._watch is None or not self._watch.call(super()._listen_anew):
            super()._listen_anew()

    async def __aenter__(self) -> Lease:
        block = begin(self)
        self._begin()
        self.check()  # or the body would run without the lock
        self._enter(block, _current_task())
        return self

    def _begin(self) -> None:
        if self._care.cancel:
            self._body = _Body()
            self.check()  # lost already: then nobody would be told any more

    @block_end
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        block = self._unstated()
        if block is None:
            await self._leave(kind, error, trace)
        else:
            await end_async(block, kind, error, trace)

    async def _leave(self, _: object, error: BaseException | None, __: object) -> None:
        if self._passed or self._pid != fork.current():
            return  # to whoever adopts it; the parent's
        if self._watch is not None:
            self._watch.drop(self)
        cut = self._cut_short() if self._care.cancel and self._body.end(error) else None
        broke = cut or error
        # Once it is lost there is nothing to release, and the server may not even answer; but it
        # may have been extended since.
        steps = self._release() if cut is None or self.held else None
        if steps is not None:
            try:
                await self._driver.run(steps if broke is None else protocol.leave(steps, broke))
            finally:
                self._tell_released()
        if cut is not None:
            raise cut from error


class _Event(asyncio.Event):
    """An event that other threads may set, too."""

    def __init__(self) -> None:
        super().__init__()
        self._home = asyncio.get_running_loop()

    def set(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits there
            self._home.call_soon_threadsafe(super().set)


class _Body:
    """The body of an ``async with``, which is cancelled when its lease is lost."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task: Any = task
        self._cancelled = self._ended = False
        self._others = self._cancelling()

    def _cancelling(self) -> int:
        # Python 3.10 does not count; there a cancellation from elsewhere cannot be told from ours.
        return self._task.cancelling() if hasattr(self._task, "cancelling") else 0

    def cancel(self) -> None:
        """Cancel it, unless it has ended, or it is the body itself that found the loss."""
        if not self._ended and asyncio.current_task() is not self._task:
            self._cancelled = True
            self._task.cancel()

    def end(self, error: BaseException | None) -> bool:
        """It has ended. Whether it did so because we cancelled it, and nobody else did."""
        self._ended = True
        if not self._cancelled:
            return False
        if hasattr(self._task, "uncancel"):
            self._task.uncancel()
        if error is None:
            return True  # it swallowed the cancellation; what it did afterwards it did without
        return isinstance(error, asyncio.CancelledError) and self._cancelling() <= self._others


class Lock(BaseLock):
    """A wish for a lock: reusable, stateless, safe to share between tasks."""

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
        cancel_on_loss: bool = False,
    ) -> None:
        queueing = fair, priority, max_waiters
        care = max_hold, on_lost, cancel_on_loss
        super().__init__(locks._settings, name, ttl, renew, metadata, *queueing, *care)
        self._locks = locks

    async def acquire(self, timeout: float | None = None) -> Lease:
        """Take the lock, waiting up to ``timeout`` seconds (``None``: for ever; 0: one try).

        Those who wait get it in turn; none of them polls.

        :raises NotAcquired: somebody else still had it when the time was over; the error says who.
        :raises QueueFull: as many wait already as ``max_waiters`` allows.
        :raises SelfDeadlock: ``timeout`` is ``None``, and this task is inside a ``with`` block of
            the lock, or inside a job that holds it. Nothing was sent.
        :raises LockUnavailable: the server cannot be reached, or refuses.
        :raises KeyConflict: the lock's key holds something that lualock did not write.
        """
        ask = self._ask()
        return await self._hold(ask, self._acquire(ask, options.wait_s(timeout)))

    async def _hold(self, ask: Ask, steps: Steps[Grant], block: Block | None = None) -> Lease:
        driver, care = self._locks._driver, self._care
        try:
            grant = await driver.run(steps)
            self._crowded = grant.waited
            lease = Lease(ask, grant, driver, self._locks._watch() if care.needed else None, care)
            if block is not None:
                task = _current_task()
                self._locks._blocks.push(self._key, block, lease, task, self._entered)
            return lease
        except BaseException:
            if ask.grant is not None:  # won, and interrupted before anybody heard of it
                await driver.run(protocol.undo(ask))
            raise

    def _task(self) -> asyncio.Task[Any] | None:
        return _current_task()

    async def try_acquire(self) -> Lease | None:
        """Take the lock if it is free now; ``None`` if somebody has it. Never waits.

        :raises LockUnavailable: the server cannot be reached, or refuses.
        """
        try:
            return await self.acquire(timeout=0)
        except NotAcquired:
            return None

    async def request_release(self, lasts: float = 60.0) -> bool:
        """Ask whoever has the lock to release it, which that one may do, or not.

        Returns whether anybody has it. The holder finds the request by
        :meth:`Lease.release_requested`, within ``lasts`` seconds; who has it after that one is not
        asked. Nothing is waited for.

        :raises LockUnavailable: the server did not answer.
        """
        server = self._locks._driver.server_clock
        return await self._locks._driver.run(self._request_release(lasts, server))

    async def locked(self) -> bool:
        """Whether anybody has the lock now."""
        return (await self.inspect()).held

    async def inspect(self) -> LockInfo:
        """Who has the lock, since when, for how long, with which fence and metadata."""
        return await self._locks._driver.run(protocol.inspect(self._name, self._key, self._queue))

    async def __aenter__(self) -> Lease:
        block = begin(self)
        if self._key in self._locks._blocks.listed:
            self._locks._blocks.refuse_own_wait(self._key, _current_task())
        ask, server = self._ask(), self._locks._driver.server_clock
        lease = await self._hold(ask, protocol.acquire(ask, server, None), block)
        lease._begin()
        return lease

    @block_end
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await end_async(last(self._entered, _current_task()), kind, error, trace)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # somebody looks at the lock outside of a loop


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
        self._blocks = self._driver.blocks = blocks_on(endpoint.server)
        self._watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopWatch] = (
            weakref.WeakKeyDictionary()
        )

    def _watch(self) -> _LoopWatch:
        loop = asyncio.get_running_loop()
        found = self._watches.get(loop)
        if found is None or found.pid != fork.current():
            for ref in self._watches.keyrefs():  # made at once: other threads add theirs
                other = ref()
                ended = self._watches.get(other) if other and other.is_closed() else None
                if ended is not None:
                    ended.close()  # or its thread would wait until the next lease is due
            found = self._watches[loop] = _LoopWatch(self._driver, loop)
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
        max_hold: float | None = None,
        on_lost: Callable[[Lease], object] | None = None,
        cancel_on_loss: bool = False,
    ) -> Lock:
        """The lock of that name. Nothing is sent until it is acquired.

        :param name: any ``str`` or ``bytes`` of 1 to 1024 bytes; ``"a"`` and ``b"a"`` are one.
        :param ttl: seconds that a lease lasts. Given, it is not renewed unless ``renew=True``;
            left out, it is 30 s and renewed until released. Renewal goes on while the event loop is
            blocked. A loop that has not run for ``HUNG_TTLS`` ttls counts as hung: the lease ends,
            and its loss is told as soon as the loop runs again. Where the client's connections or
            credentials exist for asyncio only (Sentinel, a connection class of your own), the lease
            is not renewed while the loop is blocked.
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
            It is called in the event loop, and may be a coroutine function.
        :param cancel_on_loss: cancel the body of ``async with`` when the lease is lost; it then
            raises :class:`LeaseLost`.
        :raises InvalidArgument: one of these cannot be used.
        """
        return Lock(
            *(self, name, ttl, renew, metadata, fair, priority, max_waiters, max_hold, on_lost),
            *(cancel_on_loss,),
        )

    async def adopt(
        self,
        handle: str,
        *,
        renew: bool | None = None,
        metadata: str = "",
        max_hold: float | None = None,
        on_lost: Callable[[Lease], object] | None = None,
        cancel_on_loss: bool = False,
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
            cancel_on_loss=cancel_on_loss,
        )
        ask = lock._ask()
        steps = protocol.adopt(ask, found.token, self._driver.server_clock)
        return await lock._hold(ask, steps)

    async def aclose(self) -> None:
        """Close this loop's connections, and give up the embedded server if this uses it.

        Leases that are still held are watched as before, until the loop ends: to renew them a
        connection is opened again.
        """
        try:
            await self._driver.aclose()  # until then they go on being renewed
        finally:  # also if it is cancelled, and of what was acquired meanwhile
            await self._watch_again()
            keep, self._keep = self._keep, None
            if keep is not None:
                keep.close()

    async def _watch_again(self) -> None:
        """Watch leases that are still held after the connections were closed."""
        loop = asyncio.get_running_loop()
        watch = self._watches.get(loop)
        if watch is None:
            return
        if watch.pid == fork.current() and watch.leases() and await self._driver.begin():
            watch.resume()
        else:
            del self._watches[loop]

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


LONGEST_NAP_S = 86_400.0


HUNG_TTLS = 5
"""An event loop that has not run for this many ttls of a lease counts as hung: the lease ends then.
"""


class _LoopWatch(WatchThread):
    """Watches the leases of one event loop from a thread, so that a loop that is blocked for a
    while, by a coroutine that does not let others run, keeps its leases.

    The thread asks the loop for a sign of life in each round. While there is none, a lease lasts at
    most ``HUNG_TTLS`` ttls from the last one on. What a loss leads to is done in the loop. A loop
    has a thread of its own, so that nothing that one loop does costs the leases of another.

    As long as the loop runs the thread has the loop send its requests: see :class:`_LoopDriver`.
    """

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        self.pid = fork.pid
        self.tasks = driver
        self._loop = weakref.ref(loop)  # or the thread would keep a loop that was just closed
        super().__init__(_LoopDriver(self))
        self.closed = True  # until there is a lease
        self._ran_at = -math.inf  # when the loop is known to have run
        self._asked = False  # it for a sign of life
        self._hangs = False

    def add(self, lease: BaseLease, look_at: float | None = None) -> None:
        if asyncio.get_running_loop() is self._loop():
            self._ran_at = self._clock()
            if self.closed:
                self.open()
        super().add(lease, look_at)

    def open(self) -> None:
        super().open()
        self.tasks.at_loop_end(self.close)

    def resume(self) -> None:
        """Go on, where all was closed and there are leases still."""
        self.open()
        self._wake_at(self._clock())

    def close(self) -> None:
        super().close()
        self._thread_ended()

    def _thread_ended(self) -> None:
        self._driver.close()

    def _is_here(self) -> bool:
        """Whether it is this loop that runs now."""
        try:
            return asyncio.get_running_loop() is self._loop()
        except RuntimeError:
            return False

    def call(self, what: Callable[..., object], *args: object) -> bool:
        """Call it in the loop; whether that is not closed."""
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(what, *args)
            return loop is not None
        except RuntimeError:
            return False

    def round(self) -> Steps[None]:
        loop = self._loop()
        if loop is None or loop.is_closed():
            self.close()
            return
        if not self._asked:
            self._asked = True
            self.call(self._runs)
        yield from super().round()

    def _runs(self) -> None:
        """The sign of life."""
        self._ran_at = self._clock()
        self._asked = self._hangs = False

    def _renewed_until(self, lease: BaseLease) -> float:
        hangs_at = self._ran_at + HUNG_TTLS * lease._ttl_ms / 1000
        return min(super()._renewed_until(lease), hangs_at)

    def _not_renewed(self, lease: BaseLease) -> None:
        if not lease._renewed or super()._renewed_until(lease) <= self._renewed_until(lease):
            super()._not_renewed(lease)
            return
        if not self._hangs:
            self._hangs = True
            log.warning(
                "the event loop has not run for %.1f s: lock %r is not renewed until it runs again",
                self._clock() - self._ran_at,
                lease.name,
            )
        self._look_again(lease, self._retry_at(lease, lease._lasts_ms))

    def lose(self, lease: BaseLease, why: str) -> None:
        if self._is_here():
            super().lose(lease, why)
        elif not self.call(self._lost, lease, why):
            self.drop(lease)  # there is nobody left to tell

    def _lost(self, lease: BaseLease, why: str) -> None:
        """The thread has found this lease lost, some time ago."""
        if lease._look_at == math.inf:
            return  # released since
        if lease._left() > 0 or self.closed:
            super().add(lease)  # it was extended; or nobody is told until all is opened again
        else:
            super().lose(lease, why)

    def _tell(self, lease: BaseLease) -> None:
        assert isinstance(lease, Lease)
        if lease._ended is not None:
            lease._ended.set()
        if lease._care.cancel and (body := getattr(lease, "_body", None)) is not None:
            body.cancel()  # there is none where the lease is not used as a context manager
        if lease._care.on_lost is not None:
            self.tasks.spawn(_call(lease._care.on_lost, lease))


class _LoopDriver(BlockingDriver):
    """Sends renewals for the thread: by the loop and its connection, or if the loop is blocked by
    a connection of the thread's own.

    Where the client's connections (those of a Sentinel, or of a class of its own) or credentials
    exist for asyncio only, a thread cannot connect, and a lease is not renewed while the loop is
    blocked.
    """

    def __init__(self, watch: _LoopWatch) -> None:
        super().__init__(watch.tasks.endpoint, watch.tasks.prefix)
        self._watch = watch

    def _batch(self, batch: Batch) -> list[Any]:
        answer: futures.Future[list[Any]] = futures.Future()
        if not self._watch.call(self._send, batch, answer):
            raise LockUnavailable("the event loop is closed")
        try:
            try:
                return answer.result(self._left_s(batch) / 2)
            except futures.TimeoutError:
                if not answer.cancel():  # the loop runs, and waits for the server
                    return answer.result(self._left_s(batch) + LAST_WORD_S)
        except futures.TimeoutError:
            if not self._watch.closed:
                raise LockUnavailable("the event loop has not read the answer") from None
        if self._watch.closed:
            raise futures.CancelledError
        try:
            return super()._batch(batch)
        except (InvalidArgument, NotImplementedError) as error:
            raise LockUnavailable(f"the event loop is blocked, and in a thread {error}") from None

    def _left_s(self, batch: Batch) -> float:
        until = math.inf if batch.until is None else batch.until
        return min(self.server_clock.reply_s, max(LAST_WORD_S, until - self.clock()))

    def _send(self, batch: Batch, answer: futures.Future[list[Any]]) -> None:
        if self._watch.closed or not answer.set_running_or_notify_cancel():
            answer.cancel()
            return  # what began now would be left over when the loop has ended
        task = self._watch.tasks.spawn(self._watch.tasks.run(_only(batch)), lasts=True)
        task.add_done_callback(partial(_answer, answer))

    _PERFORM: ClassVar[dict[type, Callable[..., Any]]] = {
        **BlockingDriver._PERFORM,
        Batch: _batch,
    }


def _only(batch: Batch) -> Steps[list[Any]]:
    replies: list[Any] = yield batch
    return replies


def _answer(answer: futures.Future[list[Any]], task: asyncio.Task[list[Any]]) -> None:
    if task.cancelled():
        answer.set_exception(futures.CancelledError())
    elif (error := task.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(task.result())


async def _call(on_lost: Callable[[Lease], object], lease: Lease) -> None:
    try:
        result = on_lost(lease)
        if inspect.isawaitable(result):
            await result
    except Exception:
        log.exception("on_lost of lock %r raised", lease.name)

"""Define the lock of the asyncio API."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from lualock import _protocol as protocol
from lualock._core import options
from lualock._core.decorating import P, R, check_function, check_result
from lualock._core.lock import LockBase
from lualock._core.options import Seconds
from lualock._core.with_statement import Block, begin, block_end, end_async, find_block, inside
from lualock._protocol import AcquireRequest, LeaseState, LockInfo, Steps
from lualock._transport.asyncio.tasks import begin_body, current_task
from lualock.aio.lease import Lease
from lualock.errors import NotAcquired

if TYPE_CHECKING:
    from lualock.aio.locks import Locks


class Lock(LockBase):
    """A reusable object that names a lock, safe to share between tasks.

    Creating one sends nothing. Acquiring the lock returns a :class:`Lease`.
    """

    __slots__ = ()
    _locks: Locks
    _lease_class: ClassVar[type[Lease]] = Lease

    async def acquire(self, timeout: Seconds | None = None, blocking: None = None) -> Lease:
        """Acquire the lock, waiting up to ``timeout`` seconds (``None``: no limit; 0: one try).

        Waiters are served in turn, and a release wakes the next one; no waiter polls.

        :param blocking: refused, with a ``TypeError``: :meth:`try_acquire` does not wait.
        :raises NotAcquired: another holder still had the lock when the time was over. The error
            names the holder.
        :raises QueueFull: the lock has as many waiters as ``max_waiters`` allows.
        :raises SelfDeadlock: ``timeout`` is ``None``, and this task is inside a ``with`` block of
            the lock, or inside a job that holds it. Nothing was sent.
        :raises LockUnavailable: the server cannot be reached, or cannot carry out the request.
        :raises KeyConflict: the lock's key holds a value that lualock did not write.
        """
        if blocking is not None:
            raise options.unknown_parameter("Lock.acquire()", ["blocking"])
        request = self._request()
        return await self._hold(request, self._acquire(request, options.wait_s(timeout)))

    async def _hold(
        self, request: AcquireRequest, steps: Steps[LeaseState], block: Block | None = None
    ) -> Lease:
        driver, lock_options = self._locks._driver, self._options
        try:
            state = await driver.run(steps)
            if state.waited is not request.crowded:
                self._locks._crowded.note(self._key, state.waited)
            renewer = self._locks._renewers.current() if lock_options.needs_renewer else None
            lease = self._lease_class(request, state, driver, renewer, lock_options)
            if block is not None:
                self._locks._blocks.push(self._key, block, lease, current_task(), self._entered)
            return lease
        except BaseException:
            if request.state is not None:  # acquired, and interrupted before the caller has it
                await driver.run(protocol.undo(request))
            raise

    # async only:
    _task = staticmethod(current_task)
    # end

    async def try_acquire(self) -> Lease | None:
        """Acquire the lock if it is free now, else return ``None``. Never waits.

        :raises LockUnavailable: the server cannot be reached, or cannot carry out the request.
        """
        try:
            return await self.acquire(timeout=0)
        except NotAcquired:
            return None

    async def request_release(self, expires_in: Seconds = 60.0) -> bool:
        """Ask the holder to release the lock; the holder may do so or not.

        Returns whether the lock is held. The holder sees the request by
        :meth:`Lease.release_requested`, for ``expires_in`` seconds. The request is for the current
        holder only, not for later ones. Does not wait for the release.

        :raises LockUnavailable: the server did not answer.
        """
        server = self._locks._driver.server_clock
        return await self._locks._driver.run(self._request_release(expires_in, server))

    async def force_release(self, fence: int | None = None) -> bool:
        """End the lease that has the lock, and hand the lock on to the first waiter.

        For a lock that is stuck, if :meth:`request_release` does not help. The holder is not asked,
        and may go on working beside the next one. It learns that its lease is lost when it next
        renews it (within a third of its ttl), extends or releases it. Returns whether a lease was
        ended: false if the lock was free, or another lease than that one has it.

        :param fence: end only the lease with this fence (``LockInfo.fence``), not a later one.
        :raises LockUnavailable: the server did not answer.
        :raises KeyConflict: the lock's key holds a value that lualock did not write.
        """
        server = self._locks._driver.server_clock
        return await self._locks._driver.run(self._force_release(fence, server))

    async def locked(self) -> bool:
        """Return whether the lock is held now."""
        info = await self.inspect()
        return info.held

    async def inspect(self) -> LockInfo:
        """Return the holder of the lock, since when, for how long, its fence and its metadata."""
        return await self._locks._driver.run(protocol.inspect(self._name, self._key, self._queue))

    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]:
        """Decorate a coroutine function, so that each call of it is inside ``async with lock:``.

        A call waits without a limit, and raises what the block raises.

        :raises InvalidArgument: it is not a coroutine function. A call raises this if the function
            returns work that would run without the lock, such as an awaitable or a generator.
        """
        name = check_function(function, asynchronous=True)

        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            async with self:
                result = await function(*args, **kwargs)
                check_result(result, name)
                return result

        return call

    async def __aenter__(self) -> Lease:
        block = begin(self)
        if inside.get() or self._key in self._locks._blocks.listed:
            self._locks._blocks.refuse_own_wait(self._key, current_task())
        request, server = self._request(), self._locks._driver.server_clock
        lease = await self._hold(request, protocol.acquire(request, server, None), block)
        # async only:
        begin_body(lease)
        # end
        return lease

    @block_end
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await end_async(find_block(self._entered, current_task()), error=error)

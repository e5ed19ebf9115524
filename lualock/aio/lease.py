"""Define the lease of the asyncio API."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any

from lualock import _protocol as protocol
from lualock._core import fork, options
from lualock._core.clock import MAX_TIMER_S
from lualock._core.lease import LeaseBase
from lualock._core.options import Seconds
from lualock._core.with_statement import begin, block_end, end_async
from lualock._transport.asyncio.driver import AsyncDriver
from lualock._transport.asyncio.renewer import LoopRenewer


class Lease(LeaseBase):
    """A held lock. Use it as an async context manager, or await :meth:`release`."""

    __slots__ = ("_body",)
    _driver: AsyncDriver
    _body: _Body  # only if the body may be cancelled
    _renewer: LoopRenewer | None

    async def release(self) -> None:
        """Release the lock. A second release does nothing.

        :raises LeaseLost: the lease had ended before: another holder may have, or have had, the
            lock. Nothing was changed.
        :raises LockUnavailable: the server did not answer. The lease is over all the same: it is
            released in the background as soon as the server answers again, if that is within a
            minute and the loop still runs; else it ends with its ttl. A further release may raise
            ``LeaseLost``.
        """
        if self._renewer is not None:
            self._renewer.drop(self)
        steps = self._release()
        if steps is not None:
            try:
                await self._driver.run(steps)
            finally:
                self._wake_wait_lost()

    async def extend(self, ttl: Seconds) -> None:
        """Let the lease last ``ttl`` seconds from now on, however much was left.

        If this shortens the lease and the reply is lost (:class:`LockUnavailable`), the lease
        counts as shortened from then on, because the request may still be executed.

        :raises LeaseLost: the lease had ended, or was released, before. Nothing was changed.
        :raises InvalidArgument: ``ttl`` is not from 0.001 s to 366 days.
        """
        await self._driver.run(self._extend(options.ttl_ms(ttl)))

    async def release_requested(self) -> bool:
        """Return whether a release of this lease was requested (:meth:`Lock.request_release`).

        Takes one round trip, or two in a job that has a ``previous_key``. A holder that keeps a
        lock for long can check between its steps, and stop.

        :raises LockUnavailable: the server did not answer.
        """
        return await self._driver.run(self._release_requested())

    async def wait_lost(self, timeout: Seconds | None = None) -> bool:
        """Wait until the lease is lost, for up to ``timeout`` seconds (``None``: no limit).

        Returns ``True`` if the lease is lost; ``False`` if it was released or passed on, or if the
        time is over.
        """
        give_up_at = self._give_up_at(timeout)
        while not self.lost:
            if (check_in_s := self._next_check_s(give_up_at)) <= 0:
                return False
            if self._wakeup is None:
                self._wakeup = _Event()
            # wait_for loses a cancellation that comes together with the event.
            waiting = asyncio.ensure_future(self._wakeup.wait())
            try:
                await asyncio.wait({waiting}, timeout=min(check_in_s, MAX_TIMER_S))
            finally:
                waiting.cancel()
        return True

    def _resubscribe(self) -> None:
        if self._renewer is None or not self._renewer.call(super()._resubscribe):
            super()._resubscribe()

    async def __aenter__(self) -> Lease:
        block = begin(self)
        self._begin()
        self.check()  # else the body runs without the lock
        self._enter(block, _current_task())
        return self

    def _begin(self) -> None:
        if self._options.cancel:
            self._body = _Body()
            self.check()  # a lease that is lost already reports nothing later

    @block_end
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        block = self._pop_block()
        if block is None:
            await self._leave(error)
        else:
            await end_async(block, error)

    async def _leave(self, error: BaseException | None) -> None:
        if self._state.passed_on or self._pid != fork.current():
            return  # passed on; or the parent's lease
        if self._renewer is not None:
            self._renewer.drop(self)
        loss = self._cancelled_error() if self._options.cancel and self._body.end(error) else None
        cause = loss or error
        # A lost lease has nothing to release, and the server may not even answer. But the lease
        # may have been extended since.
        steps = self._release() if loss is None or self.held else None
        if steps is not None:
            try:
                await self._driver.run(steps if cause is None else protocol.leave(steps, cause))
            finally:
                self._wake_wait_lost()
        if loss is not None:
            raise loss from error


class _Event(asyncio.Event):
    """An event that other threads can set, too."""

    def __init__(self) -> None:
        super().__init__()
        self._home = asyncio.get_running_loop()

    def set(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: no task waits there
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
        # Python 3.10 does not count cancellations, so it cannot tell a foreign one from this one.
        return self._task.cancelling() if hasattr(self._task, "cancelling") else 0

    def cancel(self) -> None:
        """Cancel the body, unless it has ended or found the loss itself."""
        if not self._ended and asyncio.current_task() is not self._task:
            self._cancelled = True
            self._task.cancel()

    def end(self, error: BaseException | None) -> bool:
        """Note the end of the body; return whether only :meth:`cancel` cancelled it."""
        self._ended = True
        if not self._cancelled:
            return False
        if hasattr(self._task, "uncancel"):
            self._task.uncancel()
        if error is None:
            return True  # it swallowed the cancellation, and went on without the lock
        return isinstance(error, asyncio.CancelledError) and self._cancelling() <= self._others


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # the lock is used outside of a loop

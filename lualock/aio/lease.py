"""Define the lease of the asyncio API."""

from __future__ import annotations

from types import TracebackType

from lualock import _protocol as protocol
from lualock._core import fork, options
from lualock._core.lease import LeaseBase
from lualock._core.options import Seconds
from lualock._core.with_statement import begin, block_end, end_async
from lualock._transport.asyncio.driver import AsyncDriver
from lualock._transport.asyncio.renewer import LoopRenewer
from lualock._transport.asyncio.tasks import begin_body, current_task
from lualock._transport.asyncio.waking import wait_for_change


class Lease(LeaseBase):
    """A held lock. Use it in ``async with``, or release it by :meth:`release`.

    Entering a lease that has ended raises :class:`LeaseLost`.
    """

    __slots__ = ()
    _driver: AsyncDriver
    _renewer: LoopRenewer | None

    async def release(self) -> None:
        """Release the lock. A second release does nothing.

        :raises LeaseLost: the lease had ended before: another holder may have, or have had, the
            lock. Nothing was changed.
        :raises LockUnavailable: the server did not answer. The lease is over all the same: it is
            released in the background as soon as the server answers again, if that is within a
            minute and the program still runs; else it ends with its ttl. A further release may
            raise ``LeaseLost``.
        """
        if self._renewer is not None:
            self._renewer.drop(self)
        steps = self._release()
        if steps is not None:
            try:
                await self._driver.run(steps)
            finally:
                if self._wakeup is not None:
                    self._wakeup.set()

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
            await wait_for_change(self, check_in_s)
        return True

    async def __aenter__(self) -> Lease:
        block = begin(self)
        self.check()  # else the body runs without the lock
        # async only:
        begin_body(self)
        # end
        self._enter(block, current_task())
        return self

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
            await end_async(block, error=error)

    async def _leave(self, error: BaseException | None) -> None:
        if self._state.passed_on or self._pid != fork.current():
            return  # passed on; or the parent's lease
        if self._renewer is not None:
            self._renewer.drop(self)
        # async only:
        if self._options.cancel_on_lost and self._body.end(error):
            loss = self._cancelled_error()
            # A lost lease has nothing to release, and the server may not even answer. But the
            # lease may have been extended since.
            if self.held:
                await self._leave(loss)
            raise loss from error
        # end
        steps = self._release()
        if steps is not None:
            try:
                await self._driver.run(steps if error is None else protocol.leave(steps, error))
            finally:
                if self._wakeup is not None:
                    self._wakeup.set()

"""The task in the body of an ``async with``."""

from __future__ import annotations

import asyncio
from typing import Any

from lualock._core.lease import LeaseBase


def current_task() -> asyncio.Task[Any] | None:
    """Return the current task; ``None`` outside of a loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def begin_body(lease: LeaseBase) -> None:
    """Let the loss of the lease cancel this task, if its lock says so.

    :raises LeaseLost: the lease is lost already, and so reports nothing later.
    """
    if lease._options.cancel_on_lost:
        lease.check()  # first: a task that this refuses has no body to cancel
        lease._body = Body()


class Body:
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
        self._cancelled = False
        if hasattr(self._task, "uncancel"):
            self._task.uncancel()
        if error is None:
            return True  # it swallowed the cancellation, and went on without the lock
        return isinstance(error, asyncio.CancelledError) and self._cancelling() <= self._others

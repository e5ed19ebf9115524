"""Wait for a change of a lease."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from lualock._core.clock import MAX_TIMER_S
from lualock._core.lease import LeaseBase


async def wait_for_change(lease: LeaseBase, seconds: float) -> None:
    """Wait until the end of the lease changes, for up to this many seconds."""
    if lease._wakeup is None:
        lease._wakeup = _Event()
    # wait_for loses a cancellation that comes together with the event.
    waiting = asyncio.ensure_future(lease._wakeup.wait())
    try:
        await asyncio.wait({waiting}, timeout=min(seconds, MAX_TIMER_S))
    finally:
        waiting.cancel()


class _Event(asyncio.Event):
    """An event that other threads can set, too."""

    def __init__(self) -> None:
        super().__init__()
        self._home = asyncio.get_running_loop()

    def set(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: no task waits there
            self._home.call_soon_threadsafe(super().set)

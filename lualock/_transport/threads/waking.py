"""Wait for a change of a lease."""

from __future__ import annotations

from lualock._core import fork
from lualock._core.event import Event
from lualock._core.lease import LeaseBase

_making = fork.Mutex()  # held to make the event that several threads may wait for


def wait_for_change(lease: LeaseBase, seconds: float) -> None:
    """Wait until the end of the lease changes, for up to this many seconds."""
    with _making.lock:
        if lease._wakeup is None:
            lease._wakeup = Event()
        wakeup = lease._wakeup
    wakeup.wait(seconds)

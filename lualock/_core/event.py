"""An event that threads wait for, also one in which a signal handler raises."""

from __future__ import annotations

import threading


class Event:
    """Wake the threads that wait, as :class:`threading.Event` does.

    That one enters a lock by Python code. If a signal handler raises there, the lock stays taken,
    and every later call waits for ever. Here each waiter sleeps on a lock of its own.
    """

    __slots__ = ("_is_set", "_sleepers")

    def __init__(self) -> None:
        self._is_set = False
        self._sleepers: dict[threading.Lock, bool] = {}  # each is taken while its waiter sleeps

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Wake all waiters, and keep later ones from waiting."""
        self._is_set = True
        for sleeper in list(self._sleepers):  # made at once: waiters come and go
            if self._sleepers.pop(sleeper, False):  # not yet woken by another thread
                sleeper.release()

    def clear(self) -> None:
        """Let later waiters wait again."""
        self._is_set = False

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, for up to this many seconds. Returns whether it is set."""
        sleeper = threading.Lock()
        sleeper.acquire()
        try:
            # First, so that a thread that sets the event from here on sees it.
            self._sleepers[sleeper] = True
            if not self._is_set:
                sleeper.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))
        finally:
            self._sleepers.pop(sleeper, None)
        return self._is_set

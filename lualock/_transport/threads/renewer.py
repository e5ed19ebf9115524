"""Layer 4, shared: the thread that watches leases, for threads and for event loops."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

from lualock._core import fork
from lualock._core.lease import LeaseBase
from lualock._core.renewal import ERROR_PAUSE_S, LeaseRenewer, log
from lualock._transport.threads.driver import BlockingDriver

IDLE_EXIT_S = 1.0
"""How long the watching thread stays without a lease: where they come and go quickly, starting one
again and again would cost more."""


class RenewalThread(LeaseRenewer):
    """Watches leases from one thread, which exists only while there are leases to watch."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        # A child has no such thread and owns no lease; the condition may be in any state.
        self._start_empty(self._driver.server_clock)
        self._changed = threading.Condition()
        self._turn: object = None  # whose it is to watch
        self.closed = False

    def _wake_at(self, look_at: float) -> None:
        with self._changed:
            if self.closed:
                return
            if self._wakes_at == math.inf:
                turn = object()
                try:
                    self._turn, self._wakes_at = turn, look_at
                    threading.Thread(
                        target=self._run, args=(turn,), name="lualock-watch", daemon=True
                    ).start()
                except BaseException:
                    # If a signal handler raised, it may have been started all the same; the next
                    # lease starts another, and there is only one that watches.
                    self._turn, self._wakes_at = None, math.inf
                    raise
            elif look_at < self._wakes_at:
                self._wakes_at = look_at
                self._changed.notify()

    def close(self) -> None:
        """Watch nothing until :meth:`open` is called. A round that is under way goes on."""
        with self._changed:
            self.closed = True
            self._changed.notify()

    def open(self) -> None:
        """Watch again what is added from now on; and the rest, once the thread runs."""
        with self._changed:
            self.closed = False

    def _run(self, turn: object) -> None:
        while self._nap(turn):
            try:
                self._driver.run(self.round())
            except CancelledError:
                pass  # its loop ends, or all its tasks were cancelled: there is nothing to say
            except BaseException:  # whatever it is, nobody else watches the leases
                log.exception("watching leases failed")
                time.sleep(ERROR_PAUSE_S)
            with self._changed:
                # Infinity first: a lease that is added from here on finds nobody looking and comes
                # here to start a thread, and one that was added before is seen by next_look.
                self._wakes_at = math.inf
                next_check_at = self.next_check_at()
                if next_check_at == math.inf:
                    if not self._added:
                        break
                    next_check_at = self._clock() + IDLE_EXIT_S
                self._added = False
                self._wakes_at = next_check_at
        self._thread_ended()

    def _nap(self, turn: object) -> bool:
        """Wait until it is time to look; whether this thread still watches."""
        with self._changed:
            while self._turn is turn and not self.closed:
                nap_s = self._wakes_at - self._clock()
                if nap_s <= 0:
                    return True
                self._changed.wait(min(nap_s, threading.TIMEOUT_MAX))
            if self._turn is turn:
                self._wakes_at = math.inf
            return False

    def _thread_ended(self) -> None:
        """The thread has nothing to watch any more."""


class ThreadRenewer(RenewalThread):
    """Watches the leases of threads.

    One for each server, not one for all: a server that hangs must not cost the leases of another.
    """

    def _tell(self, lease: LeaseBase) -> None:
        if lease._ended is not None:
            lease._ended.set()
        if (on_lost := lease._options.on_lost) is not None:
            # In a thread of its own: whatever it does, the other leases are renewed.
            threading.Thread(
                target=_call, args=(on_lost, lease), name="lualock-lost", daemon=True
            ).start()


def _call(on_lost: Callable[..., object], lease: LeaseBase) -> None:
    try:
        on_lost(lease)
    except Exception:
        log.exception("on_lost of lock %r raised", lease.name)

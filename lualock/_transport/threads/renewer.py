"""The thread that renews leases, for threads and for event loops."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

from lualock._core import fork, process_exit
from lualock._core.lease import LeaseBase
from lualock._core.renewal import ERROR_PAUSE_S, LeaseRenewer, log
from lualock._protocol.extend import BATCH
from lualock._transport.threads.driver import BlockingDriver

IDLE_EXIT_S = 1.0
"""How long the thread stays without a lease. Where leases come and go quickly, starting a thread
each time would cost more."""


class RenewalThread(LeaseRenewer):
    """Watch leases from one thread, which runs only while there are leases to watch."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver
        self.after_fork()
        fork.tell(self)
        process_exit.tell(self)

    def after_fork(self) -> None:
        # A child has no such thread and owns no lease; the condition may be in any state.
        self._start_empty(self._driver.server_clock)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._turn: object = None  # identifies the thread that watches
        self.closed = False

    def _wake_at(self, look_at: float) -> None:
        with self._lock:
            if self.closed:
                return
            if self._wakes_at == math.inf:
                turn = object()
                try:
                    self._turn, self._wakes_at = turn, look_at
                    process_exit.watch_child()
                    threading.Thread(
                        target=self._run, args=(turn,), name="lualock-renewer", daemon=True
                    ).start()
                except BaseException as error:
                    # If a signal handler raised, the thread may run all the same; the next lease
                    # starts another one, and only that one watches.
                    self._turn, self._wakes_at = None, math.inf
                    if not process_exit.forbids_threads(error):
                        raise
                    process_exit.keep(self)  # as a thread would
                    log.warning("leases are not renewed any more, because the program ends")
            elif look_at < self._wakes_at:
                self._wakes_at = look_at
                self._changed.notify()

    def close(self) -> None:
        """Watch nothing until :meth:`open` is called. A round that has begun goes on."""
        with self._lock:
            self.closed = True
            self._changed.notify()

    def open(self) -> None:
        """Watch again: leases that are added from now on, and all others once the thread runs."""
        with self._lock:
            self.closed = False

    def release_all(self, until: float) -> None:
        """Release what is still held, because the process ends: in this thread, whatever the leases
        belong to."""
        calls = self.release_calls()
        for start in range(0, len(calls), BATCH):
            self._driver.call_all(calls[start : start + BATCH], until)

    def _run(self, turn: object) -> None:
        while self._nap(turn):
            try:
                self._driver.run(self.round())
            except CancelledError:
                pass  # the loop ends, or all its tasks were cancelled: there is nothing to report
            except BaseException:  # whatever it is, no other thread watches the leases
                log.exception("watching leases failed")
                time.sleep(ERROR_PAUSE_S)
            with self._lock:
                # Infinity first: a lease that is added from here on finds no thread and comes here
                # to start one, and next_look sees a lease that was added before.
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
        """Wait until the next check is due. Returns whether this thread still watches."""
        with self._lock:
            while self._turn is turn and not self.closed:
                nap_s = self._wakes_at - self._clock()
                if nap_s <= 0:
                    return True
                self._changed.wait(min(nap_s, threading.TIMEOUT_MAX))
            if self._turn is turn:
                self._wakes_at = math.inf
            return False

    def _thread_ended(self) -> None:
        """Release what the thread used."""


class ThreadRenewer(RenewalThread):
    """Watch the leases of threads.

    Each server has its own thread: a server that hangs must not cost the leases of another.
    """

    def _tell(self, lease: LeaseBase) -> None:
        lease._wake_wait_lost()
        if (on_lost := lease._options.on_lost) is not None:
            # In a thread of its own, so that on_lost never delays the renewal of other leases.
            threading.Thread(
                target=_call_on_lost, args=(on_lost, lease), name="lualock-lost", daemon=True
            ).start()


def _call_on_lost(on_lost: Callable[..., object], lease: LeaseBase) -> None:
    try:
        on_lost(lease)
    except Exception:
        log.exception("on_lost of lock %r raised", lease.name)

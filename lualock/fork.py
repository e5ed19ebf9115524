"""Layer 0: what a forked child must forget.

A child owns no lease and shares no connection. Whatever has something of the kind registers
itself with :func:`tell`; leases compare :data:`pid`, which costs less than asking the system.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Protocol


class Forgets(Protocol):
    """Something with state that must not go into a forked child."""

    def after_fork(self) -> None:
        """Start anew, in the child."""


pid = os.getpid()
_told: weakref.WeakSet[Any] = weakref.WeakSet()


def tell(what: Forgets) -> None:
    """Call ``what.after_fork()`` in every forked child, as long as ``what`` exists."""
    _told.add(what)


class Mutex:
    """A lock of a module: ``with mutex.lock:``. A child that was forked while another thread had
    it, which the child has not got, finds it free."""

    def __init__(self) -> None:
        self.after_fork()
        tell(self)

    def after_fork(self) -> None:
        # Who forked while it had the lock itself gives back the one that it took.
        self.lock = threading.RLock()  # a signal handler may come by, too, in between


def _in_child() -> None:
    global pid
    pid = os.getpid()
    for what in list(_told):
        what.after_fork()


os.register_at_fork(after_in_child=_in_child)

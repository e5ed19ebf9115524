"""Layer 0: what a forked child must forget.

A child owns no lease and shares no connection. Whatever has something of the kind registers
itself with :func:`tell`. Python's hooks do not run where C code forks: so whatever takes a
connection, begins to wait, or uses a lease, compares first: :func:`current`.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from typing import Any, Protocol


class Forgets(Protocol):
    """Something with state that must not go into a forked child."""

    def after_fork(self) -> None:
        """Start anew, in the child."""


MADV_WIPEONFORK = 18  # from Linux 4.14 on; Python does not name it

pid = os.getpid()
_told: weakref.WeakSet[Any] = weakref.WeakSet()
_starts = threading.RLock()


class _AskSystem:
    """Where no page of memory tells."""

    def __getitem__(self, _: int) -> bool:
        return os.getpid() == pid

    def __setitem__(self, _: int, value: int) -> None:
        pass


def _page() -> Any:
    """A byte that is 1 in this process, and 0 in a child of it."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(MADV_WIPEONFORK)
    except (AttributeError, OSError, ValueError):
        return _AskSystem()
    page[0] = 1
    return page


same: Any = _page()
"""``same[0]`` is false in a child that was forked without Python's hooks, by C code as in uWSGI,
until it has started anew. Reading memory takes a fifth of the time that ``getpid`` takes."""


def start_anew() -> None:
    """Forget what was the parent's."""
    global pid
    with _starts:  # the child's first threads may come together
        if not same[0]:
            pid = os.getpid()
            for what in list(_told):
                what.after_fork()
            same[0] = 1


def current() -> int:
    """This process's number. A child that was forked without Python's hooks starts anew first."""
    if not same[0]:
        start_anew()
    return pid


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
    global _starts
    _starts = threading.RLock()  # another thread of the parent may have had it
    start_anew()


os.register_at_fork(after_in_child=_in_child)

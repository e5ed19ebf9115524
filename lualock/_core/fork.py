"""Reset state that a forked child must not share with its parent.

* A child owns no lease and shares no connection. An object with such state registers itself with
  :func:`tell`.
* Python's fork hooks do not run if C code forks. So code that takes a connection, begins to wait,
  or uses a lease checks first: :func:`current`.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from typing import Any, Protocol


class Forgets(Protocol):
    """An object with state that a forked child must not share."""

    def after_fork(self) -> None:
        """Reset the state, in the child."""


if not hasattr(os, "register_at_fork"):
    raise ImportError(
        "could not import lualock: it runs on POSIX systems (Linux, macOS), and this system has no "
        "fork. On Windows use it in WSL, or in a container"
    )

MADV_WIPEONFORK = 18  # from Linux 4.14 on; Python does not name it

pid = os.getpid()
_registered: weakref.WeakSet[Any] = weakref.WeakSet()
_starts = threading.RLock()


class _AskSystem:
    """Compare process ids, where memory cannot be wiped on fork."""

    def __getitem__(self, _: int) -> bool:
        return os.getpid() == pid

    def __setitem__(self, _: int, value: int) -> None:
        pass


def _page() -> Any:
    """Make a byte that is 1 in this process, and 0 in its forked children."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(MADV_WIPEONFORK)
    except (AttributeError, OSError, ValueError):
        return _AskSystem()
    page[0] = 1
    return page


same: Any = _page()
"""``same[0]`` is false in a child that C code forked without Python's hooks (uWSGI does), until
:func:`start_anew` has run. Reading memory takes a fifth of the time of ``getpid``."""


def start_anew() -> None:
    """Reset all state of the parent."""
    global pid
    with _starts:  # the child's first threads may arrive together
        if not same[0]:
            pid = os.getpid()
            for resettable in list(_registered):
                resettable.after_fork()
            same[0] = 1


def current() -> int:
    """Return the process id. In a child that was forked without Python's hooks, reset first."""
    if not same[0]:
        start_anew()
    return pid


def tell(resettable: Forgets) -> None:
    """Call ``resettable.after_fork()`` in every forked child, as long as the object exists."""
    _registered.add(resettable)


class Mutex:
    """A mutex of a module: ``with mutex.lock:``.

    It is free in a forked child, even if another thread of the parent had it.
    """

    def __init__(self) -> None:
        self.after_fork()
        tell(self)

    def after_fork(self) -> None:
        # A thread that forked inside ``with`` releases the object that it acquired, not this one.
        self.lock = threading.RLock()  # reentrant: a signal handler may need it meanwhile


def _in_child() -> None:
    global _starts
    _starts = threading.RLock()  # another thread of the parent may have held it
    start_anew()


os.register_at_fork(after_in_child=_in_child)

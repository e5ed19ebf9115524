"""Release what is still held when the process ends normally.

Python calls :func:`release_all` when it exits, also after ``sys.exit`` in a signal handler, but not
after a signal that kills the process, and not after ``os._exit``. A process of ``multiprocessing``
ends by ``os._exit``, after finalizers of its own.
"""

from __future__ import annotations

import atexit
import logging
import sys
import weakref
from typing import Any, Protocol

from lualock._core import clock, fork

log = logging.getLogger("lualock")

WITHIN_S = 0.8
"""How long an exit may wait for servers, all together."""

_AFTER_CHILDREN = -100
"""The priority of our finalizer: below 0, so it runs when the process has joined its children."""


class Releases(Protocol):
    """An object that knows leases."""

    def release_all(self, until: float) -> None:
        """Release them by this time, on the local clock."""


_registered: weakref.WeakSet[Any] = weakref.WeakSet()
_kept: list[Releases] = []
_watched_pid = 0


def tell(holder: Releases) -> None:
    """Call ``holder.release_all()`` when the process ends, if the object still exists."""
    _registered.add(holder)


def forbids_threads(error: BaseException) -> bool:
    """Return whether this error says that no thread starts any more, because the process ends
    (Python 3.12)."""
    return isinstance(error, RuntimeError) and "interpreter shutdown" in str(error)


def keep(holder: Releases) -> None:
    """Keep an object until the process ends, which has begun."""
    _kept.append(holder)


def watch_child() -> None:
    """Call :func:`release_all` also at the end of this process if ``multiprocessing`` began it."""
    global _watched_pid
    # A child of it has loaded it, and most programs do not use it.
    util = sys.modules.get("multiprocessing.util")
    if util is None or _watched_pid == fork.current():
        return
    if sys.modules["multiprocessing"].parent_process() is None:
        return
    _watched_pid = fork.current()
    util.Finalize(None, release_all, exitpriority=_AFTER_CHILDREN)


def release_all() -> None:
    """Release all leases that are renewed, and still held. Never raises."""
    fork.current()  # a child holds nothing of its parent's
    until = clock.now() + WITHIN_S
    for holder in list(_registered):
        try:
            holder.release_all(until)
        except Exception as error:  # the process ends: no caller is left
            log.debug("leases end on their own, because the exit could not release them: %s", error)


atexit.register(release_all)

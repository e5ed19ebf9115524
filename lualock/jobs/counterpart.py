"""The ``Locks`` of the other API for the same server, so that a job names its locks only once.

Plain functions need the ``Locks`` for threads, coroutine functions the one for asyncio.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

from lualock._core import fork
from lualock._core.lock import LocksBase, Settings
from lualock._transport.find_server import find_server
from lualock.jobs.declaration import AnyLocks

if TYPE_CHECKING:
    from lualock import _sync

_counterparts: weakref.WeakKeyDictionary[LocksBase, LocksBase] = weakref.WeakKeyDictionary()
_default: _sync.Locks | None = None
_creation = fork.Mutex()


def locks_for(locks: AnyLocks, *, asynchronous: bool) -> AnyLocks:
    """Return ``locks`` itself, or its counterpart if the other API is needed."""
    if locks.asynchronous == asynchronous:
        return locks
    with _creation.lock:
        counterpart = _counterparts.get(locks)
        if counterpart is None:
            counterpart = _counterparts[locks] = locks.counterpart()
    return cast(AnyLocks, counterpart)


def default_locks() -> _sync.Locks:
    """Return the locks of jobs that name none: ``lualock.connect()`` without arguments."""
    global _default
    with _creation.lock:
        if _default is None:
            found = find_server(None, asynchronous=False)
            locks = LocksBase.for_endpoint(*found, Settings(), asynchronous=False)
            _default = cast("_sync.Locks", locks)
        return _default

"""The ``Locks`` of the other world, for the same server: plain functions need the one for threads,
coroutine functions the one for asyncio, and a job says only once where its locks are."""

from __future__ import annotations

import weakref

from lualock import aio, fork, sync
from lualock.jobs.job import AnyLocks

_twins: weakref.WeakKeyDictionary[AnyLocks, AnyLocks] = weakref.WeakKeyDictionary()
_default: sync.Locks | None = None
_making = fork.Mutex()


def fitting(locks: AnyLocks, *, asynchronous: bool) -> AnyLocks:
    """``locks`` itself, or its twin where the other kind is wanted."""
    if isinstance(locks, aio.Locks) == asynchronous:
        return locks
    with _making.lock:
        found = _twins.get(locks)
        if found is None:
            kind = aio.Locks if asynchronous else sync.Locks
            # The embedded server is kept by `locks`, which outlives its twin.
            found = _twins[locks] = kind._of(locks._endpoint, None, locks._settings)
    return found


def default_locks() -> sync.Locks:
    """What jobs use that name no ``locks``: :func:`lualock.connect` with nothing configured."""
    global _default
    with _making.lock:
        if _default is None:
            _default = sync.connect()
        return _default

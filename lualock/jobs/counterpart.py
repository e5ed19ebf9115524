"""The ``Locks`` of the other API, for the same server: plain functions need the one for threads,
coroutine functions the one for asyncio, and a job says only once where its locks are."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

from lualock._core import fork
from lualock._core.lock import LocksBase, Settings
from lualock._transport.find_server import find_server
from lualock.jobs.job import AnyLocks

if TYPE_CHECKING:
    from lualock import _sync

_counterparts: weakref.WeakKeyDictionary[LocksBase, LocksBase] = weakref.WeakKeyDictionary()
_default: _sync.Locks | None = None
_making = fork.Mutex()


def fitting(locks: AnyLocks, *, asynchronous: bool) -> AnyLocks:
    """``locks`` itself, or its counterpart where the other kind is wanted."""
    if locks.asynchronous == asynchronous:
        return locks
    with _making.lock:
        found = _counterparts.get(locks)
        if found is None:
            # The embedded server is kept by `locks`, which outlives its counterpart.
            kind = LocksBase._kinds[asynchronous]
            found = _counterparts[locks] = kind._of(locks._endpoint, None, locks._settings)
    return cast(AnyLocks, found)


def default_locks() -> _sync.Locks:
    """The locks of jobs that name no ``locks``: :func:`lualock.connect` with nothing configured."""
    global _default
    with _making.lock:
        if _default is None:
            made = LocksBase._kinds[False]._of(*find_server(None, asynchronous=False), Settings())
            _default = cast("_sync.Locks", made)
        return _default

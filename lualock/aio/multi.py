"""Define several locks as one in the asyncio API."""

from __future__ import annotations

from lualock._core.multi import MultiLeaseBase, MultiLockBase
from lualock._transport.asyncio.tasks import current_task
from lualock.aio.lease import Lease
from lualock.aio.lock import Lock


class MultiLease(MultiLeaseBase, Lease):
    """A lease on several locks."""

    __slots__ = ()


class MultiLock(MultiLockBase):
    """Several locks of one server, acquired all or none.

    It has no other method of a lock: those are about one name.
    """

    __slots__ = ()
    _lease_class = MultiLease
    # async only:
    _task = staticmethod(current_task)
    # end
    acquire = Lock.acquire
    try_acquire = Lock.try_acquire
    _hold = Lock._hold

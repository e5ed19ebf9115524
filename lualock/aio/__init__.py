"""The asyncio API: the same names as in ``lualock``, in the same order."""

from lualock.aio.lease import Lease
from lualock.aio.lock import Lock
from lualock.aio.locks import Locks, connect

__all__ = ["Lease", "Lock", "Locks", "connect"]

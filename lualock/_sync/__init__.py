"""The API for threads; ``lualock`` exports its names. ``lualock.aio`` is its counterpart."""

from lualock._sync.lease import Lease
from lualock._sync.lock import Lock
from lualock._sync.locks import Locks, connect

__all__ = ["Lease", "Lock", "Locks", "connect"]

"""Layer 4: the shell for asyncio. ``sync`` is its twin: same names, same order."""

from lualock.aio.lease import Lease
from lualock.aio.lock import Lock
from lualock.aio.locks import Locks, connect

__all__ = ["Lease", "Lock", "Locks", "connect"]

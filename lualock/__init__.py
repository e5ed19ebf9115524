"""lualock: locks for Redis and Valkey in which every decision is one atomic Lua script.

>>> locks = lualock.connect("redis://localhost:6379/0")
>>> with locks.lock("invoice:42") as lease:
...     charge(fence=lease.fence)

``lualock.aio`` has the same for asyncio.
"""

from lualock import aio
from lualock.acl import acl_rule
from lualock.errors import (
    AccessDenied,
    EmbeddedUnavailable,
    InvalidArgument,
    KeyConflict,
    LeaseLost,
    LockError,
    LockUnavailable,
    NotAcquired,
    QueueFull,
    SelfDeadlock,
    StaleFence,
    UnsupportedServer,
)
from lualock.jobs import LockedJob
from lualock.protocol import LockInfo
from lualock.sync import Lease, Lock, Locks, connect

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "EmbeddedUnavailable",
    "InvalidArgument",
    "KeyConflict",
    "Lease",
    "LeaseLost",
    "Lock",
    "LockError",
    "LockInfo",
    "LockUnavailable",
    "LockedJob",
    "Locks",
    "NotAcquired",
    "QueueFull",
    "SelfDeadlock",
    "StaleFence",
    "UnsupportedServer",
    "__version__",
    "acl_rule",
    "aio",
    "connect",
]

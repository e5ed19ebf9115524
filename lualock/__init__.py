"""lualock: locks for Redis and Valkey in which every decision is one atomic Lua script.

>>> locks = lualock.connect("redis://localhost:6379/0")
>>> with locks.lock("invoice:42") as lease:
...     charge(fence=lease.fence)

``lualock.aio`` has the same API for asyncio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lualock import aio
from lualock._protocol import LockInfo
from lualock._sync import Lease, Lock, Locks, connect
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

if TYPE_CHECKING:
    from lualock.jobs import LockedJob
    from lualock.ops.acl import acl_rule

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

_ON_FIRST_USE = {"LockedJob": "lualock.jobs", "acl_rule": "lualock.ops.acl"}
_ROOMS = ("embedded", "fencing", "integrations", "jobs")


def __getattr__(name: str) -> Any:
    """Load on first use what a program with plain locks does not need (PEP 562)."""
    if name in _ROOMS:
        return import_module(f"lualock.{name}")
    if name in _ON_FIRST_USE:
        found = globals()[name] = getattr(import_module(_ON_FIRST_USE[name]), name)
        return found
    raise AttributeError(f"module 'lualock' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})

"""lualock: locks for Redis and Valkey in which every decision is one atomic Lua script.

>>> locks = lualock.connect("redis://localhost:6379/0")
>>> with locks.lock("invoice:42") as lease:
...     charge(fence=lease.fence)

``lualock.aio`` has the same API for asyncio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOME = {
    **dict.fromkeys(("Lease", "Lock", "Locks", "connect"), "_sync"),
    "LockInfo": "_protocol",
    "LockedJob": "jobs",
    "acl_rule": "ops.acl",
}
"""The room of each public name that is not an error."""

_ROOMS = ("aio", "embedded", "errors", "fencing", "integrations", "jobs")


def __getattr__(name: str) -> Any:
    """Load on first use (PEP 562): a program that imports this package, or a plugin of it, may not
    need a lock in this run."""
    if name in _ROOMS:
        return import_module(f"lualock.{name}")
    if name in __all__:
        home = import_module(f"lualock.{_HOME.get(name, 'errors')}")
        found = globals()[name] = getattr(home, name)
        return found
    raise AttributeError(f"module 'lualock' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})

"""The rivals, one small adapter each, by their names in tables and plots.

``SYNC`` and ``TASKS`` name the class of each rival without importing it, so that a rival that is
not installed, or cannot be imported on this Python, does not stop the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from bench.rivals.base import Rival, TaskRival

LUALOCK, RENEWED = "lualock", "lualock (renewed)"
SETNX, TIMESTAMPS = "SETNX + DEL", "SETNX/GETSET timestamps"
PLAIN = "SET NX PX + compare-and-delete"
REDIS_PY, REDIS_PY_1MS = "redis-py Lock", "redis-py Lock (polls each ms)"
PYTHON_REDIS_LOCK = "python-redis-lock"
AIO, REDIS_PY_AIO = "lualock.aio", "redis-py asyncio Lock"

SYNC = {
    LUALOCK: "ours:Lualock",
    RENEWED: "ours:LualockRenewed",
    SETNX: "plain:SetNx",
    TIMESTAMPS: "plain:Timestamp",
    PLAIN: "plain:CompareAndDelete",
    REDIS_PY: "redis_py:RedisPy",
    REDIS_PY_1MS: "redis_py:RedisPyTuned",
    PYTHON_REDIS_LOCK: "python_redis_lock:PythonRedisLock",
    "redis-lock-py": "redis_lock_py:RedisLockPy",
    "python-redilock": "redilock:Redilock",
    "python-redilock (polls each ms)": "redilock:RedilockTuned",
    "pottery Redlock": "pottery_redlock:Pottery",
    "portalocker RedisLock": "portalocker_redis:Portalocker",
    "portalocker (tuned)": "portalocker_redis:PortalockerTuned",
}
TASKS = {
    AIO: "ours:LualockAio",
    REDIS_PY_AIO: "redis_py:RedisPyAio",
    "redis-lock-py asyncio": "redis_lock_py:RedisLockPyAio",
    "redis-fifo-lock": "redis_fifo_lock:RedisFifoLock",
    "python-redilock asyncio": "redilock:RedilockAio",
    "pottery AIORedlock": "pottery_redlock:PotteryAio",
    "aioredlock": "aioredlock_tasks:Aioredlock",
}


def _named(where: str) -> object:
    module, name = where.split(":")
    return getattr(import_module(f"bench.rivals.{module}"), name)


def words(name: str) -> str:
    """Return how a rival is used here, for the report."""
    try:
        return " ".join((_named((SYNC | TASKS)[name]).__doc__ or "").split())
    except Exception as error:  # such a rival is also reported as broken
        return f"{type(error).__name__}"


def sync(name: str, url: str, ttl_s: float = 30.0) -> Rival:
    """Return the connected rival of that name; any error is raised here."""
    return cast(type[Rival], _named(SYNC[name]))(url, ttl_s)


def tasks(name: str, url: str, ttl_s: float = 30.0) -> TaskRival:
    """Return the same for asyncio, for one event loop."""
    return cast(type[TaskRival], _named(TASKS[name]))(url, ttl_s)

"""Two web applications whose requests share a lock: a plain one, and one for asyncio.

Each is imported before its server forks (``--preload``), or in each of its processes.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import redis

import lualock
from lualock import aio

URL = os.environ["LUALOCK_URL"]
locks = lualock.connect(URL)
later_locks = aio.connect(URL)
client = redis.Redis.from_url(URL)
with locks.lock("before the fork"):
    """Its connection, its renewing thread and its tokens exist when the server forks."""
forgotten = locks.lock("held by the master").try_acquire()


def _alone(enter: bool) -> None:
    found = client.incrby("running", 1 if enter else -1)
    if enter and found != 1:
        client.incr("overlaps")


def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Take the lock in a thread."""
    if environ["PATH_INFO"] == "/hold":
        with locks.lock("held", ttl=2):
            client.set("holder", os.getpid())
            time.sleep(60)
    with locks.lock("counter"):
        _alone(True)
        time.sleep(0.002)
        _alone(False)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]


async def asynchronous(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Take the lock in a task."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/hold":
        async with later_locks.lock("held", ttl=2):
            client.set("holder", os.getpid())
            await asyncio.sleep(60)
    async with later_locks.lock("counter"):
        _alone(True)
        await asyncio.sleep(0.002)
        _alone(False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})

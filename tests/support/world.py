"""Write one test for both APIs.

A test is a coroutine function that awaits :func:`settle` of each result: results of the API for
threads pass through, those of the asyncio API are awaited.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

import lualock
from lualock import aio
from tests.support.servers import BINARIES, Server

_threads = ThreadPoolExecutor(64)

_WAYS = ((False, 2), (True, 3), (False, 3), (True, 2))
_FEW = [
    pytest.param(name, *way, id=f"{name}-{'asyncio' if way[0] else 'sync'}-resp{way[1]}")
    for name, way, _ in zip(
        itertools.cycle(BINARIES), itertools.cycle(_WAYS), range(max(len(_WAYS), len(BINARIES)))
    )
]
few = pytest.mark.parametrize(("server", "asynchronous", "resp"), _FEW, indirect=True)
"""For a slow test of ``world``: every server, and every API over every protocol version, but not
all combinations. Quicker tests run with all."""

on_one = pytest.mark.parametrize("server", [next(iter(BINARIES), "none")], indirect=True)
"""For a slow test with fixtures of ``server`` that depends on the client's clock, or on rules that
other tests check on every server."""


async def settle(result: Any) -> Any:
    """Return the result, whichever API it comes from."""
    return await result if inspect.isawaitable(result) else result


@asynccontextmanager
async def entered(manager: Any) -> Any:
    """Enter ``with`` or ``async with``, as the API's object needs."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


@dataclass
class World:
    """An API, a protocol version and a server."""

    server: Server
    asynchronous: bool
    resp: int
    client: Any  # a plain redis.Redis, which reads the server without lualock
    made: list[Any] = field(default_factory=list)

    def close(self) -> None:
        """Close the ``Locks`` objects for threads; those for asyncio close with their loop."""
        for locks in self.made:
            if not self.asynchronous:
                locks.close()

    def url(self, url: str | None = None) -> str:
        plain = url or self.server.url
        return f"{plain}{'&' if '?' in plain else '?'}protocol={self.resp}"

    def connect(self, url: str | None = None, **options: Any) -> Any:
        """Return a new ``Locks`` of this world's API."""
        connect: Callable[..., Any] = aio.connect if self.asynchronous else lualock.connect
        made = connect(self.url(url), **options)
        self.made.append(made)
        return made

    def waiters(self, lock: Any) -> int:
        """Return how many waiters a lock has, as the server has it."""
        count: int = self.client.zcard(lock.key + b":waiters")
        return count

    def calls(self, command: str) -> int:
        """Return how often the server got a command since its statistics were reset."""
        found: int = self.client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)
        return found

    async def until_waiters(self, lock: Any, count: int) -> None:
        """Return once a lock has so many waiters."""
        await self.until(lambda: self.waiters(lock) == count)

    async def beside(self, call: Callable[[], Any]) -> Any:
        """Run a call of the API beside the test: in a thread, or as a task."""
        if self.asynchronous:
            return await call()
        return await asyncio.get_running_loop().run_in_executor(_threads, call)

    async def until(self, condition: Callable[[], Any], wait_s: float = 5) -> None:
        """Return once ``condition()`` is true; tasks run meanwhile."""
        give_up = time.monotonic() + wait_s
        while not condition():
            assert time.monotonic() < give_up, f"not within {wait_s} s"
            await asyncio.sleep(0.002)

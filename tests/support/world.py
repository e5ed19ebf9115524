"""One way to write a test for both shells.

A test is a coroutine function that awaits :func:`settle` of whatever a shell returns: the plain
shell's results pass through, the asyncio shell's are awaited.
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
"""For a test of ``world`` that mostly waits: every server, and every shell over every protocol
version, but not each with each. Quicker tests have them all."""

on_one = pytest.mark.parametrize("server", [next(iter(BINARIES), "none")], indirect=True)
"""For a test with fixtures of ``server`` that mostly waits for a clock of the client's, or for
rules that other tests see kept by every server."""


async def settle(result: Any) -> Any:
    """The result itself, whichever shell it comes from."""
    return await result if inspect.isawaitable(result) else result


@asynccontextmanager
async def entered(manager: Any) -> Any:
    """``with`` or ``async with``, whichever the shell's object is."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


@dataclass
class World:
    """A shell, a protocol version and a server."""

    server: Server
    asynchronous: bool
    resp: int
    client: Any  # a plain redis.Redis, to look at the server behind lualock's back
    made: list[Any] = field(default_factory=list)

    def close(self) -> None:
        """Close what was connected; asyncio's close with their loop."""
        for locks in self.made:
            if not self.asynchronous:
                locks.close()

    def url(self, url: str | None = None) -> str:
        plain = url or self.server.url
        return f"{plain}{'&' if '?' in plain else '?'}protocol={self.resp}"

    def connect(self, url: str | None = None, **options: Any) -> Any:
        """A new ``Locks`` of this world's shell."""
        connect: Callable[..., Any] = aio.connect if self.asynchronous else lualock.connect
        made = connect(self.url(url), **options)
        self.made.append(made)
        return made

    def waiters(self, lock: Any) -> int:
        """How many wait for a lock, by the server's own account."""
        count: int = self.client.zcard(lock.key + b":waiters")
        return count

    def calls(self, command: str) -> int:
        """How often the server has been sent a command since its statistics were reset."""
        found: int = self.client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)
        return found

    async def until_waiters(self, lock: Any, count: int) -> None:
        """Return once so many wait for a lock."""
        await self.until(lambda: self.waiters(lock) == count)

    async def beside(self, call: Callable[[], Any]) -> Any:
        """Run a call of the shell beside the test: in a thread, or as a task."""
        if self.asynchronous:
            return await call()
        return await asyncio.get_running_loop().run_in_executor(_threads, call)

    async def until(self, condition: Callable[[], Any], wait_s: float = 5) -> None:
        """Return once ``condition()`` is true, letting tasks run meanwhile."""
        give_up = time.monotonic() + wait_s
        while not condition():
            assert time.monotonic() < give_up, f"not within {wait_s} s"
            await asyncio.sleep(0.002)

"""One lock and very many who wait for it: coroutines of one process.

What they cost while nothing happens (commands, the server's memory), and how long a hand-over
takes when they are served one after the other.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Any

import redis

from bench.server import Server
from lualock import aio

WAITERS, QUICK_WAITERS = (10, 100, 1000, 10_000), (10, 1000)
IDLE_S, QUICK_IDLE_S = 10.0, 3.0
SERVED = 2000  # hand-overs to time, at least


@dataclass(frozen=True)
class Row:
    """``idle_per_s``: scripts run per waiter and second while nothing happens; ``bytes_each``: the
    server's memory; ``hand_over_us``: from one holder to the next (median of the runs)."""

    waiters: int
    idle_per_s: float
    bytes_each: float
    hand_over_us: float


def run(server: Server, *, quick: bool) -> list[Row]:
    """Each number of waiters."""
    counts = QUICK_WAITERS if quick else WAITERS
    return [asyncio.run(_measure(server, n, QUICK_IDLE_S if quick else IDLE_S)) for n in counts]


async def _measure(server: Server, waiters: int, idle_s: float) -> Row:
    client: Any = redis.Redis.from_url(server.unix_url)
    async with aio.connect(server.tcp_url) as locks:
        async with locks.lock("first"):  # the connections and the scripts are there
            await asyncio.gather(_use(locks), _use(locks))
        took_us = []
        idle_per_s = bytes_each = 0.0
        # The first turn waits long and is not timed: afterwards each of them claims the lock before
        # it begins, which is another round trip.
        for turn in range(1 + max(1, SERVED // waiters)):
            client.execute_command("FLUSHALL", "SYNC")
            holder = await locks.lock("waited").acquire()
            before = client.info("memory")["used_memory"]
            waiting = [asyncio.create_task(_use(locks)) for _ in range(waiters)]
            await _queued(client, waiters)
            if turn == 0:
                bytes_each = (client.info("memory")["used_memory"] - before) / waiters
                client.config_resetstat()
                await asyncio.sleep(idle_s)
                scripts = client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
                idle_per_s = scripts / idle_s / waiters
            start = time.perf_counter()
            await holder.release()
            await asyncio.gather(*waiting)
            if turn:
                took_us.append((time.perf_counter() - start) / waiters * 1e6)
    client.close()
    return Row(waiters, idle_per_s, bytes_each, statistics.median(took_us))


async def _queued(client: Any, waiters: int) -> None:
    while True:
        if client.zcard("lualock:{waited}:queue") >= waiters:
            return
        await asyncio.sleep(0.01)


async def _use(locks: aio.Locks) -> None:
    async with locks.lock("waited"):
        pass


def targets(rows: list[Row]) -> list[tuple[str, float, bool]]:
    """What must show: the claim, the figure of this run, and whether it is met."""
    few, many = rows[0], rows[-1]
    ratio = many.hand_over_us / few.hand_over_us
    idle = max(row.idle_per_s for row in rows)
    claim = f"a hand-over among {many.waiters:,} waiters takes at most 1.5 times that among 10"
    return [
        (claim, ratio, ratio <= 1.5),
        ("an idle waiter sends less than 0.1 commands a second", idle, idle < 0.1),
    ]

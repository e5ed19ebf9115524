"""asyncio: many tasks, each with a lock of its own, beside redis-py's asyncio ``Lock``.

redis-py's pool raises when more tasks ask than it has connections, so it gets the pool that waits
instead. All in one event loop each, round after round.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import redis.asyncio

from bench.server import Server
from lualock import aio

TASKS = (1, 10, 100, 1000)
ROUNDS, QUICK_ROUNDS = 7, 3
LUALOCK, REDIS_PY = "lualock", "redis-py asyncio Lock"
PAIRS = {LUALOCK: 8000, REDIS_PY: 2000}  # in a round, over all tasks
MOST_PAIRS_A_TASK = 1000
POOL = 50


@dataclass(frozen=True)
class Row:
    """One rival at one number of tasks: pairs per second, and lualock's times that."""

    rival: str
    tasks: int
    pairs_per_s: float
    times_faster_lualock: float


def run(server: Server, *, quick: bool) -> list[Row]:
    """Both rivals in turn, at each number of tasks."""
    rows = []
    for tasks in TASKS:
        rates: dict[str, list[float]] = {LUALOCK: [], REDIS_PY: []}
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            rates[LUALOCK].append(asyncio.run(_ours(server.tcp_url, tasks)))
            rates[REDIS_PY].append(asyncio.run(_theirs(server.tcp_url, tasks)))
        for name, found in rates.items():
            pairs = zip(rates[LUALOCK], found, strict=True)
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            rows.append(Row(name, tasks, statistics.median(found), ratio))
    return rows


async def _ours(url: str, tasks: int) -> float:
    async with aio.connect(url) as locks:
        return await _rate(LUALOCK, tasks, lambda name: locks.lock(name, ttl=30))


async def _theirs(url: str, tasks: int) -> float:
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=POOL, timeout=60)
    async with redis.asyncio.Redis(connection_pool=pool) as client:
        rate = await _rate(REDIS_PY, tasks, lambda name: client.lock(name, timeout=30))
    await pool.disconnect()
    return rate


async def _rate(
    rival: str, tasks: int, lock: Callable[[str], AbstractAsyncContextManager[object]]
) -> float:
    pairs = min(MOST_PAIRS_A_TASK, max(1, PAIRS[rival] // tasks))

    async def work(number: int, pairs: int) -> None:
        own = lock(f"own:{number}")
        for _ in range(pairs):
            async with own:
                pass

    await asyncio.gather(*(work(number, 1) for number in range(tasks)))  # connections, scripts
    start = time.perf_counter()
    await asyncio.gather(*(work(number, pairs) for number in range(tasks)))
    return tasks * pairs / (time.perf_counter() - start)


def targets(rows: list[Row]) -> list[tuple[str, float, bool]]:
    """What must show: the claim, the figure of this run, and whether it is met."""
    found = {row.tasks: row.times_faster_lualock for row in rows if row.rival == REDIS_PY}
    return [
        ("asyncio, 1,000 tasks: at least 7 times redis-py's", found[1000], found[1000] >= 7),
        ("asyncio, a single task: no slower than redis-py's", found[1], found[1] >= 1),
    ]

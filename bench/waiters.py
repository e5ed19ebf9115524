"""One lock and very many waiters: coroutines of one process.

What they cost while nothing happens (commands, the server's memory), and how long a hand-over takes
when they are served one after the other. Both are measured after the last waiters have read their
place and checked the queue once more: that is the cost of coming, however many wait.

"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import redis

from bench.server import Server, started
from bench.setting import Setting, Targets
from bench.stats import ratio
from lualock import aio

WAITERS, QUICK_WAITERS = (10, 100, 1000, 10_000), (10, 1000)
IDLE_S, QUICK_IDLE_S = 30.0, 2.0
SETTLE_S = 3.0  # before they idle
NEWCOMERS_S = 0.2  # until the last of them has checked once more
SERVED = 300  # hand-overs to time in a round, at least


TITLE = "one lock, many waiting coroutines"
WORDS = __doc__
COLUMNS = (
    ("waiters", "waiters:,"),
    ("µs a hand-over", "hand_over_us:,.0f"),
    ("times among few", "times_few:.2f"),
    ("commands a second, each, idle", "idle_per_s:.3f"),
    ("bytes each", "bytes_each:,.0f"),
)


@dataclass(frozen=True)
class Row:
    """``idle_per_s``: scripts a second for each waiter while nothing happens; ``bytes_each``: the
    server's memory; ``hand_over_us``: from one holder to the next (median of the rounds);
    ``times_few``: the same in times that among the fewest (median of the rounds' ratios)."""

    waiters: int
    idle_per_s: float
    bytes_each: float
    hand_over_us: float
    times_few: float


def run(setting: Setting) -> list[Row]:
    """Measure the cost of waiting; then, round after round, the hand-overs among each number of
    waiters."""
    server, quick = setting.server, setting.quick
    counts = QUICK_WAITERS if quick else WAITERS
    idle_s = QUICK_IDLE_S if quick else IDLE_S
    began = time.monotonic()
    idle = asyncio.run(_idle(counts, idle_s))
    ways = {f"lualock, {n}": partial(_hand_overs, server, n) for n in counts}
    share = max(0.0, 1 - (time.monotonic() - began) / setting.budget_s)
    took_us = list(setting.rounds("waiters", ways, share=share).values())
    return [
        Row(n, *idle[n], statistics.median(took), ratio(took, took_us[0]))
        for n, took in zip(counts, took_us, strict=True)
    ]


async def _idle(counts: Sequence[int], idle_s: float) -> dict[int, tuple[float, float]]:
    """Measure all numbers at once, each on its own server, because only waiting is measured."""
    with ExitStack() as stack:
        servers = [stack.enter_context(started()) for _ in counts]
        found = await asyncio.gather(*map(_idle_on, servers, counts, repeat(idle_s)))
    return dict(zip(counts, found, strict=True))


async def _idle_on(server: Server, waiters: int, idle_s: float) -> tuple[float, float]:
    client: Any = redis.Redis.from_url(server.unix_url)
    async with aio.connect(server.tcp_url) as locks:
        holder, waiting, bytes_each = await _crowd(locks, client, waiters)
        await asyncio.sleep(SETTLE_S)
        client.config_resetstat()
        await asyncio.sleep(idle_s)
        scripts = client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
        await holder.release()
        await asyncio.gather(*waiting)
    client.close()
    return scripts / idle_s / waiters, bytes_each


def _hand_overs(server: Server, waiters: int) -> float:
    return asyncio.run(_us_a_hand_over(server, waiters))


async def _us_a_hand_over(server: Server, waiters: int) -> float:
    client: Any = redis.Redis.from_url(server.unix_url)
    took_s = 0.0
    turns = max(1, SERVED // waiters)
    async with aio.connect(server.tcp_url) as locks:
        async with locks.lock(
            "first"
        ):  # now the connections are open, and the server has the scripts
            await asyncio.gather(_use(locks), _use(locks))
        for _ in range(turns):
            holder, waiting, _ = await _crowd(locks, client, waiters)
            await asyncio.sleep(NEWCOMERS_S)
            start = time.perf_counter()
            await holder.release()
            await asyncio.gather(*waiting)
            took_s += time.perf_counter() - start
    client.close()
    return took_s / turns / waiters * 1e6


async def _crowd(
    locks: aio.Locks, client: Any, waiters: int
) -> tuple[aio.Lease, list[asyncio.Task[None]], float]:
    """Start a holder and so many waiters; return the memory of each."""
    client.execute_command("FLUSHALL", "SYNC")
    holder = await locks.lock("waited").acquire()
    before = client.info("memory")["used_memory"]
    waiting = [asyncio.create_task(_use(locks)) for _ in range(waiters)]
    while client.zcard("lualock:{waited}:waiters") < waiters:  # noqa: ASYNC110 - the state of the server
        await asyncio.sleep(0.01)
    return holder, waiting, (client.info("memory")["used_memory"] - before) / waiters


async def _use(locks: aio.Locks) -> None:
    async with locks.lock("waited"):
        pass


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    many = rows[-1]
    ratio = many.times_few
    idle = max(row.idle_per_s for row in rows)
    claim = f"a hand-over among {many.waiters:,} waiters takes at most 1.5 times that among 10"
    return [
        (claim, ratio, ratio <= 1.5),
        ("an idle waiter sends less than 0.1 commands a second", idle, idle < 0.1),
    ]

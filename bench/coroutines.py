"""asyncio: many tasks, each with a lock of its own, in one event loop.

redis-py's pool raises when more tasks ask than it has connections, so the rivals on redis-py get
the pool that waits instead.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import rivals
from bench.rivals.base import TaskRival
from bench.setting import Setting, Targets
from bench.stats import ratio

TASKS, QUICK_TASKS = (1, 10, 100, 1000), (1, 1000)
ROUNDS, QUICK_ROUNDS = 5, 2
PAIRS = {rivals.AIO: 8000}  # in a round, over all tasks
OTHERS_PAIRS, QUICK_SHARE = 2000, 4
MOST_PAIRS_A_TASK = 1000
PATIENCE_S = 15.0

TITLE = "asyncio: a lock for each task"
WORDS = ""
COLUMNS = (
    ("", "rival"),
    ("tasks", "tasks"),
    ("pairs/s", "pairs_per_s:,.0f"),
    ("lualock is so many times as fast", "times_faster_lualock:.2f"),
)


@dataclass(frozen=True)
class Row:
    """One rival at one number of tasks: pairs per second, and lualock's times that."""

    rival: str
    tasks: int
    pairs_per_s: float
    times_faster_lualock: float


def run(setting: Setting) -> list[Row]:
    """All rivals in turn, round after round, at each number of tasks."""
    rows = []
    share = QUICK_SHARE if setting.quick else 1
    for tasks in QUICK_TASKS if setting.quick else TASKS:
        ways = {name: partial(_round, setting, name, tasks, share) for name in setting.tasks}
        count = QUICK_ROUNDS if setting.quick else ROUNDS
        rates = setting.rounds(f"coroutines, {tasks:,} tasks", count, ways)
        ours = rates[rivals.AIO]
        for name, found in rates.items():
            rows.append(Row(name, tasks, statistics.median(found), ratio(ours, found)))
    return rows


def _round(setting: Setting, name: str, tasks: int, share: int) -> float:
    return asyncio.run(_rate(setting, name, tasks, share))


async def _rate(setting: Setting, name: str, tasks: int, share: int) -> float:
    rival = rivals.tasks(name, setting.server.tcp_url)
    try:
        return await asyncio.wait_for(_measure(rival, name, tasks, share), PATIENCE_S)
    finally:
        await rival.close()


async def _measure(rival: TaskRival, name: str, tasks: int, share: int) -> float:
    every = PAIRS.get(name, OTHERS_PAIRS) // share
    pairs = min(MOST_PAIRS_A_TASK // share, max(1, every // tasks))

    async def work(number: int, pairs: int) -> None:
        use: Any = rival.reusable(f"own{number}")
        for _ in range(pairs):
            own: AbstractAsyncContextManager[object] = use()
            async with own:
                pass

    await asyncio.gather(*(work(number, 1) for number in range(tasks)))  # connections, scripts
    start = time.perf_counter()
    await asyncio.gather(*(work(number, pairs) for number in range(tasks)))
    return tasks * pairs / (time.perf_counter() - start)


def targets(rows: list[Row]) -> Targets:
    """What must show: the claim, the figure of this run, and whether it is met."""
    found = {r.tasks: r.times_faster_lualock for r in rows if r.rival == rivals.REDIS_PY_AIO}
    most = found[max(found)]
    return [
        (f"asyncio, {max(found):,} tasks: at least 8 times redis-py's", most, most >= 8),
        ("asyncio, a single task: no slower than redis-py's", found[1], found[1] >= 1),
    ]

"""asyncio: many tasks, each with its own lock, in one event loop.

redis-py's pool raises if more tasks send requests than it has connections, so the rivals on
redis-py get the pool that waits, with 50 connections. The time includes making the lock object.
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
RUN_S, QUICK_RUN_S = 0.3, 0.15
PATIENCE_S = 15.0

TITLE = "asyncio: a lock for each task"
WORDS = __doc__
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
    """Measure all rivals in turn, round after round, at each number of tasks."""
    rows = []
    counts = QUICK_TASKS if setting.quick else TASKS
    for tasks in counts:
        ways = {name: partial(_round, setting, name, tasks) for name in setting.tasks}
        rates = setting.rounds(f"coroutines, {tasks:,} tasks", ways, share=1 / len(counts))
        ours = rates[rivals.AIO]
        for name, found in rates.items():
            rows.append(Row(name, tasks, statistics.median(found), ratio(ours, found)))
    return rows


def _round(setting: Setting, name: str, tasks: int) -> float:
    # In a new loop, without leftovers of other rivals.
    return asyncio.run(_warm_rate(setting, name, tasks))


async def _warm_rate(setting: Setting, name: str, tasks: int) -> float:
    rival = rivals.tasks(name, setting.server.tcp_url)
    run_s = QUICK_RUN_S if setting.quick else RUN_S
    try:
        await asyncio.wait_for(_rate(rival, tasks, 0.0), PATIENCE_S)  # connections, scripts
        return await asyncio.wait_for(_rate(rival, tasks, run_s), PATIENCE_S)
    finally:
        await rival.close()


async def _rate(rival: TaskRival, tasks: int, run_s: float) -> float:
    """Return pairs a second; each task does at least one, and finishes the last."""
    done = 0
    start = time.perf_counter()
    end = start + run_s

    async def work(number: int) -> None:
        nonlocal done
        use: Any = rival.reusable(f"own{number}")
        while True:
            own: AbstractAsyncContextManager[object] = use()
            async with own:
                pass
            done += 1
            if time.perf_counter() >= end:
                return

    await asyncio.gather(*(work(number) for number in range(tasks)))
    return done / (time.perf_counter() - start)


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    found = {r.tasks: r.times_faster_lualock for r in rows if r.rival == rivals.REDIS_PY_AIO}
    most = found[max(found)]
    return [
        (f"asyncio, {max(found):,} tasks: at least 8 times redis-py's", most, most >= 8),
        ("asyncio, a single task: no slower than redis-py's", found[1], found[1] >= 1),
    ]

"""Threads of one process, each with its own lock: how many pairs they do together.

Left out are rivals that take milliseconds for a pair (pottery, portalocker), and second forms of a
rival that differ only in how they wait.

"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from functools import partial

from bench import rivals
from bench.setting import Setting, Targets
from bench.stats import ratio

THREADS, QUICK_THREADS = (1, 4, 16), (1, 8)
RUN_S = 0.15
QUICK_RIVALS = 5  # the first of these
RIVALS = (
    rivals.LUALOCK,
    rivals.SETNX,
    rivals.PLAIN,
    rivals.REDIS_PY,
    rivals.PYTHON_REDIS_LOCK,
    "redis-lock-py",
    "python-redilock",
)

TITLE = "threads of one process, a lock for each"
WORDS = __doc__
COLUMNS = (
    ("", "rival"),
    ("threads", "threads"),
    ("pairs/s", "pairs_per_s:,.0f"),
    ("lualock is so many times as fast", "times_faster_lualock:.2f"),
)


@dataclass(frozen=True)
class Row:
    """One rival at one number of threads: pairs per second, and lualock's times that."""

    rival: str
    threads: int
    pairs_per_s: float
    times_faster_lualock: float


def run(setting: Setting) -> list[Row]:
    """Measure every rival, round after round, at each number of threads."""
    rows = []
    names = [name for name in RIVALS if name in setting.sync][
        : QUICK_RIVALS if setting.quick else None
    ]
    counts = QUICK_THREADS if setting.quick else THREADS
    for threads in counts:
        ways = {name: partial(_rate, setting, name, threads) for name in names}
        rates = setting.rounds(f"threads, {threads}", ways, share=1 / len(counts))
        ours = rates[rivals.LUALOCK]
        for name, found in rates.items():
            rows.append(Row(name, threads, statistics.median(found), ratio(ours, found)))
    return rows


def _rate(setting: Setting, name: str, threads: int) -> float:
    rival = rivals.sync(name, setting.server.tcp_url)
    begin = threading.Barrier(threads + 1)
    counts = [0] * threads
    end = time.monotonic() + 60.0  # set to the true end when all are ready

    def work(number: int) -> None:
        pair = rival.pair(f"own{number}")
        pair()
        begin.wait()
        while time.monotonic() < end:
            pair()
            counts[number] += 1

    running = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(threads)]
    for thread in running:
        thread.start()
    begin.wait(timeout=30)
    start = time.monotonic()
    end = start + RUN_S
    for thread in running:
        thread.join()
    took = time.monotonic() - start
    rival.close()
    return sum(counts) / took


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    found = [row.times_faster_lualock for row in rows if row.rival == rivals.REDIS_PY]
    worst = min(found)
    return [("threads: at least as fast as redis-py's Lock with any number", worst, worst >= 1)]

"""Signals whose handler raises, each at any point of a busy event loop that runs on after it.

``python -m tests.support.busy_loop URL TRIALS SEED`` prints how many locks stayed held, as JSON. A
trial does not count if asyncio never wakes a task again, because the handler raised just as the
loop was about to: then no code of lualock runs in that task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import time
from typing import Any

import lualock
from lualock import aio


class TimeLimit(Exception):
    """What the handler raises."""


def _raise(*_: object) -> None:
    raise TimeLimit


async def _lock_repeatedly(locks: aio.Locks, name: str, end: float, names: list[str]) -> None:
    number = 0
    while time.monotonic() < end:
        number += 1
        names.append(f"{name}-{number}")
        try:
            async with locks.lock(names[-1], ttl=60, renew=False):
                await asyncio.sleep(0)
        except (TimeLimit, lualock.LockError):
            pass


async def _busy(url: str, prefix: str, end: float, names: list[str]) -> None:
    async with aio.connect(url, prefix=prefix) as locks:
        await locks.lock("warm").locked()
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.03))
        tasks = (_lock_repeatedly(locks, str(n), end, names) for n in range(8))
        await asyncio.gather(*tasks, return_exceptions=True)


def _trial(url: str, prefix: str, names: list[str]) -> bool:
    """Run one loop with one signal; return whether asyncio left a task asleep."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(_busy(url, prefix, time.monotonic() + 0.04, names))
    give_up = time.monotonic() + 0.7
    while not task.done() and time.monotonic() < give_up:
        with contextlib.suppress(TimeLimit):
            loop.run_until_complete(asyncio.wait({task}, timeout=0.1))
    signal.setitimer(signal.ITIMER_REAL, 0)
    asleep: Any = set()
    if not task.done():
        every = asyncio.all_tasks(loop)
        for one in every:
            one.cancel()
        _, asleep = loop.run_until_complete(asyncio.wait(every, timeout=0.5))
    loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), 2))
    loop.close()
    return bool(asleep)


def main(url: str, trials: int, seed: int) -> None:
    """Run the trials."""
    random.seed(seed)
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _raise)
    left, awake = 0, 0
    for trial in range(trials):
        prefix, names = f"busy{trial}", list[str]()
        if _trial(url, prefix, names):
            continue
        awake += 1
        with lualock.connect(url, prefix=prefix) as locks:
            give_up = time.monotonic() + 1
            while names and time.monotonic() < give_up:
                names = [name for name in names if locks.lock(name).locked()]
        left += len(names)
    json.dump({"left": left, "awake": awake}, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # tasks that sleep for ever prevent an orderly end


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

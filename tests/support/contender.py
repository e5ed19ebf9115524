"""A process that takes and releases locks, and at its end reports which it had, and when.

``python -m tests.support.contender '{"url": ..., ...}'`` prints "ready", begins when it reads a
line, and prints its :class:`Turn` s as JSON. Times are on the monotonic clock of the system, which
all processes share.
"""

from __future__ import annotations

import asyncio
import collections
import faulthandler
import json
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import lualock
from lualock import aio
from tests.support.world import settle


@dataclass
class Turn:
    """One lease, from ``start`` to ``end``: the time in which its holder relied on it with reason.

    ``false_loss``: its release reported a loss before the promised end.
    """

    name: str
    fence: int
    start: float
    end: float
    false_loss: bool = False


@dataclass
class Task:
    """What the process does: how many turns a worker has, and how long it runs, at least."""

    url: str
    names: list[str]
    ttl: float
    turns: int
    seconds: float
    workers: int
    asynchronous: bool


class Contender:
    """The workers of one process."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.turns: list[Turn] = []
        self.errors: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        if self._task.asynchronous:
            asyncio.run(self._tasks())
            return
        with lualock.connect(self._task.url) as locks:
            # A coroutine that never suspends: the API for threads blocks inside it.
            work = lambda: asyncio.run(self._work(locks))  # noqa: E731
            threads = [threading.Thread(target=work) for _ in range(self._task.workers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    async def _tasks(self) -> None:
        async with aio.connect(self._task.url) as locks:
            await asyncio.gather(*(self._work(locks) for _ in range(self._task.workers)))

    async def _work(self, locks: Any) -> None:
        end, done = time.monotonic() + self._task.seconds, 0
        while done < self._task.turns or time.monotonic() < end:
            # Some leases are renewed.
            lock = locks.lock(
                random.choice(self._task.names), ttl=self._task.ttl, renew=random.random() < 0.5
            )
            for _ in range(random.randint(1, 10)):
                done += await self._turn(lock)

    async def _turn(self, lock: Any) -> bool:
        try:
            lease = await settle(lock.acquire())
        except lualock.LockUnavailable as error:
            self.errors[f"acquire: {error}"[:60]] += 1
            await asyncio.sleep(0.005)
            return False
        start = time.monotonic()
        promised = start + lease.remaining()
        if random.random() < 0.05:
            await asyncio.sleep(0.005)
        end = time.monotonic()
        if not lease.held:
            end = min(end, promised)
        promised = max(promised, time.monotonic() + lease.remaining())
        turn = Turn(lock.name, lease.fence, start, end)
        try:
            await settle(lease.release())
        except lualock.LockError as error:
            self.errors[f"release: {error}"[:60]] += 1
            turn.false_loss = isinstance(error, lualock.LeaseLost) and time.monotonic() < promised
        if promised > start:
            self.turns.append(turn)
        return True


def main() -> None:
    contender = Contender(Task(**json.loads(sys.argv[1])))
    faulthandler.dump_traceback_later(30, exit=True)  # a stuck process prints its stacks
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    contender.run()
    json.dump([[asdict(turn) for turn in contender.turns], contender.errors], sys.stdout)


if __name__ == "__main__":
    main()

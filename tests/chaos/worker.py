"""A process that takes locks until it is killed or the calm begins, and records what it had.

``python -m tests.chaos.worker '{"name": ..., ...}'``. Before each step of its work a worker checks
its lease, and records what that says; each step also makes a fenced write.
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import redis
import redis.asyncio

import lualock
from lualock import aio, fencing
from lualock._core.clock import now
from lualock.errors import StaleFence
from lualock.fencing import aio as aio_fencing
from tests.chaos.event_log import EventLog
from tests.chaos.turns import DEFAULT_TTL_S, LOCKS, MAX_WAITERS, Turn, calm, draw
from tests.support.world import entered, settle

CALM = "calm"
"""The file that shows that the calm has begun."""


FAULTS = ("", "delete", "overstay")
"""Planted on purpose: ``delete`` releases without checking the owner, ``overstay`` relies on a
lease beyond its end."""

KINDS = ("threads", "asyncio", "gevent")
"""What the workers of a process are; with gevent they are threads that are greenlets."""

LATE = 0.3
"""How often a worker with a fault works for longer than its lease lasts, which shows the fault."""


@dataclass
class Task:
    """The parameters of a worker process."""

    name: str
    folder: str
    url: str
    steady_url: str
    """The server without faults: it has the resource, and the handles of leases in trust."""
    seed: int
    workers: int
    kind: str
    fault: str = ""


LATE_S = 0.25
"""An acquisition that is later than this may be excused by the kernel's accounts."""


def not_run_s() -> float:
    """Return for how long this thread has waited for a processor, in all its life."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # not Linux: nothing is excused
        return 0.0


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never suspends, because the API for threads blocks inside it.

    Greenlets cannot each run an event loop of asyncio.
    """
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("a worker that is a thread waited for an event loop")


class Process:
    """The workers of one process, as threads or as coroutines."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.log = EventLog(Path(task.folder), task.name)
        self.calm = Path(task.folder) / CALM
        self.ids = (f"{task.name}.{number}" for number in itertools.count(1))

    def run(self) -> None:
        threading.Thread(target=self._end_with_parent, daemon=True).start()
        task = self.task
        if task.kind == "asyncio":
            asyncio.run(self._tasks())
            return
        steady = redis.Redis.from_url(task.steady_url)
        broken: list[BaseException] = []

        def work(number: int, locks: lualock.Locks) -> None:
            try:
                _run(Worker(self, number, locks, steady).work())
            except BaseException as error:
                broken.append(error)
                raise

        with lualock.connect(task.url, ttl=DEFAULT_TTL_S) as locks, steady:
            threads = [
                threading.Thread(target=work, args=(number, locks))
                for number in range(task.workers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if broken:
            sys.exit(1)

    def _end_with_parent(self) -> None:
        """End this process when its parent has ended."""
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    async def _tasks(self) -> None:
        steady = redis.asyncio.Redis.from_url(self.task.steady_url)
        async with aio.connect(self.task.url, ttl=DEFAULT_TTL_S) as locks, steady:
            workers = range(self.task.workers)
            await asyncio.gather(*(Worker(self, each, locks, steady).work() for each in workers))


class Worker:
    """A thread or a coroutine: one acquisition after the other."""

    def __init__(self, process: Process, number: int, locks: Any, steady: Any) -> None:
        self.process = process
        self.task = process.task
        self.locks = locks
        self.steady = steady
        self._asynchronous = process.task.kind == "asyncio"
        self.fenced_set: Any = (aio_fencing if self._asynchronous else fencing).fenced_set
        self._chance = Random(f"{process.task.seed} {process.task.name} {number}")
        self._made: dict[tuple[Any, ...], Any] = {}

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        if self._asynchronous:
            await asyncio.sleep(seconds)
        else:
            time.sleep(seconds)  # noqa: ASYNC251 - no loop waits for a thread

    async def work(self) -> None:
        """Do turns until the calm, then take every lock once more."""
        while not self.process.calm.exists():
            try:
                if self._chance.random() < 0.2 and await self._adopt():
                    continue
                turn = draw(self._chance)
                if self.task.fault and self._chance.random() < LATE:
                    turn = replace(turn, ttl_s=0.4, renew=None, hold_s=0.7, ending="release")
                await self._turn(turn)
            except lualock.LockUnavailable:
                await self.sleep(0.02)
        # In the calm any error ends the process.
        for name in self._chance.sample(LOCKS, len(LOCKS)):
            await self._turn(calm(name))

    async def _turn(self, turn: Turn) -> None:
        await self.sleep(turn.idle_s)
        id = next(self.process.ids)
        identity: dict[str, Any] = {"lock": turn.lock, "process": self.task.name, "id": id}
        record, lock = self.process.log.record, self._lock(turn, id)
        record("acquire", wait_s=turn.wait_s, priority=turn.priority, **identity)
        why, lease = "unavailable", None
        began, kept_s = now(), not_run_s()
        try:
            if turn.wait_s == 0:
                lease = await settle(lock.try_acquire())
            else:
                lease = await settle(lock.acquire(turn.wait_s))
            why = "timeout"
        except lualock.QueueFull:
            why = "full"
        except lualock.NotAcquired:
            why = "timeout"
        finally:
            late_s = now() - began - (turn.wait_s or math.inf)
            if late_s > LATE_S and not_run_s() - kept_s > late_s / 2:
                # The library is not the cause: this thread had no processor.
                record("cause", began, what="pause", process=self.task.name, until=now())
            if lease is None:
                record("gave_up", what=why, **identity)
        if lease is not None:
            await Holding(self, turn, lease, identity).hold()

    def _lock(self, turn: Turn, id: str) -> Any:
        shape: dict[str, Any] = {"ttl": turn.ttl_s, "renew": turn.renew}
        shape |= {"priority": turn.priority, "max_waiters": MAX_WAITERS.get(turn.lock)}
        if turn.new:
            return self.locks.lock(turn.lock, metadata=id, **shape)
        key = (turn.lock, *shape.values())
        if key not in self._made:
            self._made[key] = self.locks.lock(turn.lock, **shape)
        return self._made[key]

    async def _adopt(self) -> bool:
        """Adopt a lease in trust, if there is one."""
        passed = await settle(self.steady.rpop("passed"))
        if passed is None:
            return False
        name, handle = json.loads(passed)
        id = next(self.process.ids)
        identity: dict[str, Any] = {"lock": name, "process": self.task.name, "id": id}
        record = self.process.log.record
        record("acquire", what="adopt", **identity)
        why, lease = "unavailable", None
        try:
            lease = await settle(self.locks.adopt(handle, metadata=id))
        except lualock.LeaseLost:
            why = "lost"
        finally:
            if lease is None:
                record("gave_up", what=why, **identity)
        if lease is not None:
            turn = Turn(name, None, None, None, 0, 0, 0.01, "release", new=True)
            await Holding(self, turn, lease, identity).hold()
        return True


class Holding:
    """A lease, and what is done while it lasts."""

    def __init__(self, worker: Worker, turn: Turn, lease: Any, identity: Any) -> None:
        self._worker, self._turn, self._lease = worker, turn, lease
        self._record, self._identity = worker.process.log.record, identity
        self._fault = worker.task.fault
        self._over = False
        at = now()
        self._record("got", at, fence=lease.fence, until=at + lease.remaining(), **identity)

    async def hold(self) -> None:
        """Work, then end the lease as the turn says."""
        ending, lease, outcome = self._turn.ending, self._lease, "unknown"
        try:
            if ending == "with":
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(entered(lease))
                    await self._steps()
                    self._let_go()
            else:
                await self._steps()
                outcome = await self._end(ending)
                return
            outcome = "released"
        except lualock.LeaseLost:
            outcome = "lost"
        finally:
            self._let_go()
            self._record("released", what=outcome, **self._identity)

    async def _end(self, ending: str) -> str:
        lease, worker = self._lease, self._worker
        if ending == "forget":
            self._check()
            self._over = True  # it relies on the lock until the end of the lease
            return "unknown"
        if ending == "extend" and self._check():
            await settle(lease.extend((self._turn.ttl_s or DEFAULT_TTL_S) * 1.5))
            await self._steps()
        self._let_go()
        if ending == "pass":
            passed = json.dumps([self._turn.lock, lease.handle()])
            await settle(worker.steady.lpush("passed", passed))
            return "passed"
        if self._fault == "delete" and not lease.held:
            with redis.Redis.from_url(worker.task.url) as client, suppress(redis.RedisError):
                client.delete(worker.locks.lock(self._turn.lock).key)
            return "released"
        await settle(lease.release())
        return "released"

    async def _steps(self) -> None:
        """Do three steps of work, each after a check that the lease is held."""
        for _ in range(3):
            if not self._check():
                return
            await self._write()
            await self._worker.sleep(self._turn.hold_s / 3)
        self._check()

    def _check(self) -> bool:
        """Record until when the lease is held; return whether it is."""
        # Read the time first: a lease that is held later is held at this time, too.
        at = now()
        left_s = self._lease.remaining()
        if self._fault == "overstay":
            left_s = 1.0
        if left_s > 0:
            self._record("until", at, until=at + left_s, **self._identity)
            return True
        self._let_go()
        return False

    def _let_go(self) -> None:
        if not self._over:
            self._over = True
            self._record("let_go", **self._identity)

    async def _write(self) -> None:
        lease, name, at = self._lease, self._turn.lock, now()
        what = "accepted"
        try:
            await settle(
                self._worker.fenced_set(
                    self._worker.steady, f"resource:{name}", self._identity["id"], fence=lease.fence
                )
            )
        except StaleFence:
            what = "refused"
        self._record("wrote", at, what=what, fence=lease.fence, until=now(), **self._identity)


def main() -> None:
    faulthandler.register(signal.SIGUSR1)  # prints the stack of a stuck process
    # Some turns drop their leases, and a signal may drop one.
    warnings.filterwarnings("ignore", "the lease on .* was dropped", ResourceWarning)
    Process(Task(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    main()

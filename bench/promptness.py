"""How late automatic steps are: past dead waiters, after a dead holder, at the end of a timeout.

Each figure is the delay of an event: a waiter's grant after the release (the other waiters are
dead), a waiter's grant after the end of a killed holder's lease, and the end of
``acquire(timeout=...)`` while the server answers, is stopped, paused, slow (each reply takes 0.15 s
longer), or gone.

"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

import lualock
from bench.processes import CONTEXT
from bench.server import Server, started
from bench.setting import Setting, Targets
from bench.slow import slowly
from lualock import aio

DEAD, QUICK_DEAD = 31, 7
TTL_S = 1.0
TIMEOUT_S, SLOW_S = 0.5, 0.15
TURN_MAX_MS, TIMEOUT_MAX_MS = 100.0, 50.0

TITLE = "how late automatic steps are"
WORDS = __doc__
COLUMNS = (
    ("event", "what"),
    ("ms late (median)", "median_ms:.1f"),
    ("worst", "worst_ms:.1f"),
    ("limit", "limit_ms:.0f"),
)


@dataclass(frozen=True)
class Row:
    """An event, and its delay in milliseconds."""

    what: str
    median_ms: float
    worst_ms: float
    limit_ms: float


def run(setting: Setting) -> list[Row]:
    """Measure every case several times; the timeouts, which have a server each, two at a time."""
    server = setting.server
    dead = QUICK_DEAD if setting.quick else DEAD
    turns: dict[str, Callable[[], float]] = {
        f"the grant of the last of {dead + 1} waiters, the others killed": partial(
            _dead, server, dead
        ),
        "the grant of the first waiter, the holder killed": partial(_killed_holder, server),
    }
    timeouts = {
        f"the end of a timeout, {api}, the server {trouble}": partial(_timeout, acquire, trouble)
        for api, acquire in (("threads", _threads), ("asyncio", _asyncio))
        for trouble in ("up", "stopped before", "stopped while waiting", "paused", "slow", "gone")
    }
    late_s: dict[str, list[float]] = {what: [] for what in turns | timeouts}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(setting.least):
            for what, measure in turns.items():
                late_s[what].append(measure())
            running = {what: pool.submit(measure) for what, measure in timeouts.items()}
            for what, found in running.items():
                late_s[what].append(found.result())
    rows = []
    for what, many in late_s.items():
        limit_ms = TURN_MAX_MS if what in turns else TIMEOUT_MAX_MS
        rows.append(Row(what, statistics.median(many) * 1000, max(many) * 1000, limit_ms))
    return rows


@contextmanager
def _waiters(server: Server, count: int, ttl_s: float) -> Iterator[list[tuple[Any, Any]]]:
    """Yield processes that take the lock on command, with their pipes."""
    made = []
    try:
        for _ in range(count):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(
                target=_wait, args=(server.tcp_url, ttl_s, theirs), daemon=True
            )
            process.start()
            theirs.close()
            made.append((process, ours))
        for _, pipe in made:
            pipe.recv()
        yield made
    finally:
        for process, _ in made:
            process.kill()
            process.join()


def _wait(url: str, ttl_s: float, pipe: Any) -> None:
    lock = lualock.connect(url).lock("prompt", ttl=ttl_s)
    pipe.send("ready")
    pipe.recv()
    lease = lock.acquire()
    pipe.send(time.monotonic())
    pipe.recv()
    lease.release()


def _queue_up(client: Any, pipes: Iterable[Any]) -> None:
    for number, pipe in enumerate(pipes, start=1):
        pipe.send("go")
        while client.zcard("lualock:{prompt}:waiters") < number:
            time.sleep(0.002)


def _dead(server: Server, count: int) -> float:
    with redis.Redis.from_url(server.tcp_url) as client, lualock.connect(server.tcp_url) as locks:
        client.flushall()
        with _waiters(server, count + 1, 30) as made:
            lease = locks.lock("prompt", ttl=30).acquire()
            _queue_up(client, [pipe for _, pipe in made])
            *dead, (_, alive) = made
            for process, _ in dead:
                process.kill()
            for process, _ in dead:
                process.join()
            released = time.monotonic()
            lease.release()
            had: float = alive.recv()
            return had - released


def _killed_holder(server: Server) -> float:
    with redis.Redis.from_url(server.tcp_url) as client:
        client.flushall()
        with _waiters(server, 2, TTL_S) as ((holder, ours), (_, waiter)):
            ours.send("go")
            acquired: float = ours.recv()
            _queue_up(client, [waiter])
            holder.kill()
            had: float = waiter.recv()
            return had - (acquired + TTL_S)


def _timeout(acquire: Callable[..., float], trouble: str) -> float:
    # A separate server, which the case may break.
    with started() as server, lualock.connect(server.tcp_url) as locks:
        locks.lock("prompt", ttl=60).acquire()
        if trouble == "stopped before":
            os.kill(server.pid, signal.SIGSTOP)
        elif trouble == "gone":
            os.kill(server.pid, signal.SIGKILL)
        elif trouble == "paused":
            with redis.Redis.from_url(server.tcp_url) as client:
                client.client_pause(60_000)
        elif trouble == "slow":
            port = int(server.tcp_url.rpartition(":")[2])
            with slowly(port, SLOW_S) as url:
                return acquire(url) - TIMEOUT_S
        stop = threading.Timer(TIMEOUT_S / 2, os.kill, (server.pid, signal.SIGSTOP))
        if trouble == "stopped while waiting":
            stop.start()
        try:
            return acquire(server.tcp_url) - TIMEOUT_S
        finally:
            stop.cancel()


def _threads(url: str) -> float:
    with lualock.connect(url) as locks:
        lock = locks.lock("prompt", ttl=60)
        start = time.monotonic()
        try:
            lock.acquire(timeout=TIMEOUT_S)
        except lualock.LockError:
            return time.monotonic() - start
    raise AssertionError("the lock was not held")


def _asyncio(url: str) -> float:
    async def acquire() -> float:
        async with aio.connect(url) as locks:
            lock = locks.lock("prompt", ttl=60)
            start = time.monotonic()
            try:
                await lock.acquire(timeout=TIMEOUT_S)
            except lualock.LockError:
                return time.monotonic() - start
        raise AssertionError("the lock was not held")

    return asyncio.run(acquire())


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    claims = {
        TURN_MAX_MS: "a grant comes within 100 ms, whichever processes died (ms)",
        TIMEOUT_MAX_MS: "a timeout is exact to 50 ms whatever the server does (ms)",
    }
    found = []
    for limit_ms, claim in claims.items():
        # A timeout that ends early is as wrong as a late one.
        most = max(abs(row.median_ms) for row in rows if row.limit_ms == limit_ms)
        found.append((claim, most, most <= limit_ms))
    return found

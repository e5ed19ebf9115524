"""How soon what must happen by itself does: dead waiters, dead holders, and the end of patience.

Each figure is by how much something came later than it should have: a waiter's turn after the
release (the others in the queue are dead), a waiter's turn after the end of a killed holder's
lease, and the end of ``acquire(timeout=...)``, while the server answers, is stopped, or is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

import lualock
from bench.server import Server, started
from bench.setting import Setting, Targets
from lualock import aio

ROUNDS, QUICK_ROUNDS = 3, 1
DEAD, QUICK_DEAD = 31, 7
TTL_S = 1.0
TIMEOUT_S = 0.5
TURN_MAX_MS, TIMEOUT_MAX_MS = 100.0, 50.0

WAITER = """
import sys, time, lualock
lock = lualock.connect(sys.argv[1]).lock("prompt", ttl=float(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
lease = lock.acquire()
print(time.monotonic(), flush=True)
sys.stdin.readline()
"""


TITLE = "how late what must happen does"
WORDS = ""
COLUMNS = (
    ("what should have happened", "what"),
    ("ms late (median)", "median_ms:.1f"),
    ("worst", "worst_ms:.1f"),
    ("limit", "limit_ms:.0f"),
)


@dataclass(frozen=True)
class Row:
    """What should have happened, and by how much later it did, in milliseconds."""

    what: str
    median_ms: float
    worst_ms: float
    limit_ms: float


def run(setting: Setting) -> list[Row]:
    """Every case, some times each."""
    server, quick = setting.server, setting.quick
    dead = QUICK_DEAD if quick else DEAD
    last = partial(_dead, dead)
    cases: list[tuple[str, float, Callable[[Server], float]]] = [
        (f"the turn of the last of {dead + 1} waiters, the others killed", TURN_MAX_MS, last),
        ("the turn of the first waiter, the holder killed", TURN_MAX_MS, _killed_holder),
    ]
    for shell, acquire in (("threads", _threads), ("asyncio", _asyncio)):
        for trouble in ("up", "stopped before", "stopped while waiting", "gone"):

            def late(_: Server, acquire: Any = acquire, trouble: str = trouble) -> float:
                return _timeout(acquire, trouble)

            words = f"the end of a timeout, {shell}, the server {trouble}"
            cases.append((words, TIMEOUT_MAX_MS, late))
    rows = []
    for what, limit_ms, measure in cases:
        late_ms = [measure(server) * 1000 for _ in range(QUICK_ROUNDS if quick else ROUNDS)]
        rows.append(Row(what, statistics.median(late_ms), max(late_ms), limit_ms))
    return rows


@contextmanager
def _waiters(server: Server, count: int, ttl_s: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that take the lock one after the other as they are told to."""
    command = [sys.executable, "-c", WAITER, server.tcp_url, str(ttl_s)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for process in processes:
            _line(process)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _queue_up(client: Any, processes: list[subprocess.Popen[str]]) -> None:
    for number, process in enumerate(processes, start=1):
        _go(process)
        while client.zcard("lualock:{prompt}:queue") < number:
            time.sleep(0.002)


def _dead(count: int, server: Server) -> float:
    with redis.Redis.from_url(server.tcp_url) as client, lualock.connect(server.tcp_url) as locks:
        client.flushall()
        with _waiters(server, count + 1, 30) as processes:
            lease = locks.lock("prompt", ttl=30).acquire()
            _queue_up(client, processes)
            *dead, alive = processes
            for process in dead:
                process.kill()
            for process in dead:
                process.wait()
            released = time.monotonic()
            lease.release()
            return float(_line(alive)) - released


def _killed_holder(server: Server) -> float:
    with redis.Redis.from_url(server.tcp_url) as client:
        client.flushall()
        with _waiters(server, 2, TTL_S) as (holder, waiter):
            _go(holder)
            acquired = float(_line(holder))
            _queue_up(client, [waiter])
            holder.kill()
            return float(_line(waiter)) - (acquired + TTL_S)


def _timeout(acquire: Callable[..., float], trouble: str) -> float:
    # A server of its own, which may come to harm.
    with started() as server, lualock.connect(server.tcp_url) as locks:
        locks.lock("prompt", ttl=60).acquire()
        if trouble == "stopped before":
            os.kill(server.pid, signal.SIGSTOP)
        elif trouble == "gone":
            os.kill(server.pid, signal.SIGKILL)
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
    """What must show: the claim, the figure of this run, and whether it is met."""
    claims = {
        TURN_MAX_MS: "a turn comes within 100 ms whoever died before (ms)",
        TIMEOUT_MAX_MS: "a timeout is exact to 50 ms whatever the server does (ms)",
    }
    found = []
    for limit_ms, claim in claims.items():
        # A timeout that ends early is as wrong as one that ends late.
        most = max(abs(row.median_ms) for row in rows if row.limit_ms == limit_ms)
        found.append((claim, most, most <= limit_ms))
    return found

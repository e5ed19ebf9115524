"""What a lock costs: acquire and release of a free lock, one thread, pair after pair.

All ways are measured in turn, round after round, so that whatever else the machine does meets all
of them; ratios are taken within each round. Beside them is a PING pair on a connection of redis-py,
without its client: no lock can be faster than two round trips.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from bench.rivals import Lualock, LualockRenewed, RedisPy, SetNx, SetNxPx, Timestamp
from bench.server import Server

TTL_S = 30.0
RIVALS = (Lualock, LualockRenewed, SetNx, Timestamp, SetNxPx, RedisPy)
PING, PREPARED = "PING pair", "PING pair, bytes prepared"

PAIRS = 200
ROUNDS, QUICK_ROUNDS = 41, 11


@dataclass(frozen=True)
class Row:
    """One way's figures: microseconds a pair (median and spread), pairs/s, and how many times as
    long as lualock's pair it takes (median of the rounds' ratios)."""

    name: str
    median_us: float
    p10_us: float
    p90_us: float
    pairs_per_s: float
    times_lualock: float


@dataclass(frozen=True)
class Table:
    """All rows of one transport and placement."""

    transport: str
    placement: str
    rows: list[Row]

    def times(self, name: str) -> float:
        """How many times as long as lualock's pair another way's takes."""
        return next(row.times_lualock for row in self.rows if row.name == name)


def run(server: Server, *, quick: bool) -> list[Table]:
    """Measure over TCP and a unix socket; with client and server on one core, and as scheduled."""
    tables = []
    for placement in _placements():
        for transport, url in (("TCP", server.tcp_url), ("unix socket", server.unix_url)):
            with _placed(placement, server.pid):
                rows = measure(url, rounds=QUICK_ROUNDS if quick else ROUNDS)
            tables.append(Table(transport, placement, rows))
    return tables


def measure(url: str, *, rounds: int, pairs: int = PAIRS) -> list[Row]:
    """The rows of one table."""
    shuffled = random.Random(1)
    with _ways(url) as ways:
        took_us: dict[str, list[float]] = {name: [] for name in ways}
        for pair in ways.values():
            _time(pair, pairs)  # warm-up: connections, scripts, caches
        for _ in range(rounds):
            for name in shuffled.sample(list(ways), len(ways)):
                took_us[name].append(_time(ways[name], pairs))
    ours = took_us[Lualock.name]
    return [_row(name, took, ours) for name, took in took_us.items()]


def _row(name: str, took_us: list[float], ours_us: list[float]) -> Row:
    tenths = statistics.quantiles(took_us, n=10)
    median = statistics.median(took_us)
    ratio = statistics.median(theirs / our for theirs, our in zip(took_us, ours_us, strict=True))
    return Row(name, median, tenths[0], tenths[-1], 1e6 / median, ratio)


@contextmanager
def _ways(url: str) -> Iterator[dict[str, Callable[[], object]]]:
    rivals = [kind(url, f"bench:{kind.__name__}", TTL_S, "me") for kind in RIVALS]
    pool: Any = redis.ConnectionPool.from_url(url)
    connection = pool.get_connection()
    ping = [b"*1\r\n$4\r\nPING\r\n"]

    def ping_pair() -> None:
        for _ in range(2):
            connection.send_command("PING")
            connection.read_response()

    def prepared_pair() -> None:
        for _ in range(2):
            connection.send_packed_command(ping, check_health=False)
            connection.read_response()

    try:
        ways: dict[str, Callable[[], object]] = {r.name: _pair(r) for r in rivals}
        yield ways | {PING: ping_pair, PREPARED: prepared_pair}
    finally:
        pool.disconnect()
        for rival in rivals:
            rival.close()


def _pair(rival: Any) -> Callable[[], object]:
    """The pair as the rival's users write it, without the adapter's bookkeeping."""
    client, key = rival.client, rival.key
    if isinstance(rival, Lualock):
        lock = rival._lock
        return lambda: lock.acquire().release()
    if isinstance(rival, RedisPy):
        theirs = rival._lock
        return lambda: (theirs.acquire(), theirs.release())
    if isinstance(rival, SetNx):
        return lambda: (client.setnx(key, "1"), client.delete(key))
    if isinstance(rival, SetNxPx):
        return lambda: (client.set(key, "1", nx=True, px=30_000), client.delete(key))
    return lambda: (rival.take(), rival.give())


def _time(pair: Callable[[], object], pairs: int) -> float:
    start = time.perf_counter()
    for _ in range(pairs):
        pair()
    return (time.perf_counter() - start) / pairs * 1e6


ONE_CORE, AS_SCHEDULED = "one core", "as scheduled"


def _placements() -> list[str]:
    return [ONE_CORE, AS_SCHEDULED] if hasattr(os, "sched_setaffinity") else [AS_SCHEDULED]


@contextmanager
def _placed(placement: str, server_pid: int) -> Iterator[None]:
    if placement == AS_SCHEDULED:
        yield
        return
    before = {pid: os.sched_getaffinity(pid) for pid in (0, server_pid)}
    core = {min(before[0])}
    try:
        for pid in before:
            os.sched_setaffinity(pid, core)
        yield
    finally:
        for pid, cores in before.items():
            os.sched_setaffinity(pid, cores)


def targets(tables: list[Table]) -> list[tuple[str, float, bool]]:
    """What must show: the claim, the figure of this run, and whether it is met."""
    judged = next((t for t in tables if (t.transport, t.placement) == ("TCP", ONE_CORE)), tables[0])
    redis_py, setnx = judged.times(RedisPy.name), judged.times(SetNx.name)
    over_ping = 1 / judged.times(PING)
    return [
        ("redis-py's Lock takes at least 1.6 times as long", redis_py, redis_py >= 1.6),
        ("setnx + delete through redis-py takes longer", setnx, setnx > 1),
        ("a pair takes at most 1.25 PING pairs", over_ping, over_ping <= 1.25),
    ]

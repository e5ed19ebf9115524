"""What a lock costs: acquire and release of a free lock, in one thread, pair after pair.

All ways are measured in turn, round after round, and ratios are taken within each round. The limits
are: two round trips (a PING pair) through a redis-py connection, with prepared bytes, and on a bare
socket; and the server's own, pairs of SET and DEL that are sent a hundred at a time.

"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import redis

from bench import rivals
from bench.rivals.base import Rival
from bench.setting import Setting, Targets
from bench.stats import ratio, spread

RAW, PREPARED, PING = "PING pair, bare socket", "PING pair, bytes prepared", "PING pair"
PIPELINED = "SET + DEL, a hundred at a time"
LIMITS = (PING, PREPARED, RAW, PIPELINED)

PAIRS = 200  # a round, or as many as fit in ROUND_S
ROUND_S = 0.03
ONE_CORE, AS_SCHEDULED = "one core", "as scheduled"
JUDGED = ("TCP", ONE_CORE)

TITLE = "acquire and release of a free lock"
WORDS = """\
The rows with client and server on one core are judged: on many machines, above all virtual ones,
waking a sleeping core takes longer than all that is compared, for every rival. In the other rows
the system places the processes."""
COLUMNS = (
    ("", "rival"),
    ("over", "transport"),
    ("placed", "placement"),
    ("µs a pair", "median_us:.1f"),
    ("p10", "p10_us:.1f"),
    ("p90", "p90_us:.1f"),
    ("pairs/s", "pairs_per_s:,.0f"),
    ("times lualock's", "times_lualock:.2f"),
)


@dataclass(frozen=True)
class Row:
    """The figures of one way: microseconds a pair (median and spread), pairs/s, and its time in
    times lualock's (median of the rounds' ratios)."""

    rival: str
    transport: str
    placement: str
    median_us: float
    p10_us: float
    p90_us: float
    pairs_per_s: float
    times_lualock: float


def run(setting: Setting) -> list[Row]:
    """Measure over TCP and a unix socket; with client and server on one core, and as scheduled."""
    server = setting.server
    urls = (("TCP", server.tcp_url), ("unix socket", server.unix_url))
    found = [(placement, *over) for placement in placements() for over in urls]
    rows = []
    for placement, transport, url in found[:1] if setting.quick else found:
        share = 1 if setting.quick else 1 / len(found)
        with placed(placement, server.pid):
            rows += _measure(setting, url, transport, placement, share)
    return rows


def _measure(setting: Setting, url: str, transport: str, placement: str, share: float) -> list[Row]:
    with ways(setting, url) as found:
        timed = {name: partial(time_pair, pair) for name, pair in found.items()}
        took_us = setting.rounds(f"uncontended, {transport}", timed, share=share)
    ours = took_us[rivals.LUALOCK]
    rows = []
    for name, took in took_us.items():
        median, low, high = spread(took)
        times = ratio(took, ours)
        rows.append(Row(name, transport, placement, median, low, high, 1e6 / median, times))
    return rows


@contextmanager
def ways(setting: Setting, url: str) -> Iterator[dict[str, Callable[[], object]]]:
    """Yield a function that makes one pair for every rival that works, and for the limits; all are
    warm."""
    open_: list[Rival] = []
    found: dict[str, Callable[[], object]] = {}
    try:
        for name in setting.sync:
            try:
                rival = rivals.sync(name, url)
                open_.append(rival)
                found[name] = rival.pair("bench" + "".join(filter(str.isalnum, name)))
                found[name]()
            except Exception as error:
                found.pop(name, None)
                setting.breaks(name, f"uncontended, {urlsplit(url).scheme}", error)
        with limits(url) as limit:
            yield found | limit
    finally:
        for rival in open_:
            rival.close()


@contextmanager
def limits(url: str) -> Iterator[dict[str, Callable[[], object]]]:
    """Yield the physical limits."""
    pool: Any = redis.ConnectionPool.from_url(url)
    connection = pool.get_connection()
    ping = b"*1\r\n$4\r\nPING\r\n"
    set_, del_ = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n", b"*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n"
    hundred, answers = (set_ + del_) * 100, (b"+OK\r\n:1\r\n") * 100

    def ping_pair() -> None:
        for _ in range(2):
            connection.send_command("PING")
            connection.read_response()

    def prepared_pair() -> None:
        for _ in range(2):
            connection.send_packed_command([ping], check_health=False)
            connection.read_response()

    def raw_pair() -> None:
        for _ in range(2):
            raw.sendall(ping)
            raw.recv(64)

    def pipelined() -> None:
        raw.sendall(hundred)
        left = len(answers)
        while left:
            left -= len(raw.recv(left))

    pipelined.pairs = 100  # type: ignore[attr-defined]  # read by time_pair
    with _socket(url) as raw:
        yield {PING: ping_pair, PREPARED: prepared_pair, RAW: raw_pair, PIPELINED: pipelined}
    pool.disconnect()


def _socket(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        found = socket.socket(socket.AF_UNIX)
        found.connect(parts.path)
        return found
    found = socket.create_connection((parts.hostname or "", parts.port or 0))
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def time_pair(pair: Callable[[], object]) -> float:
    """Return microseconds a pair; a slow rival makes fewer pairs, so that it takes no more time."""
    start = time.perf_counter()
    pair()
    done = 1
    while done < PAIRS and time.perf_counter() - start < ROUND_S:
        for _ in range(20 if done > 2 else 1):
            pair()
            done += 1
    took = time.perf_counter() - start
    return took / done / getattr(pair, "pairs", 1) * 1e6


def placements() -> list[str]:
    """Return where client and server can run, the judged placement first."""
    return [ONE_CORE, AS_SCHEDULED] if hasattr(os, "sched_setaffinity") else [AS_SCHEDULED]


@contextmanager
def placed(placement: str, server_pid: int) -> Iterator[None]:
    """Run this process and the server at that placement."""
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


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    judged = [r for r in rows if (r.transport, r.placement) == JUDGED] or rows
    times = {row.rival: row.times_lualock for row in judged}
    redis_py, setnx, over_ping = times[rivals.REDIS_PY], times[rivals.SETNX], 1 / times[PING]
    return [
        ("redis-py's Lock takes at least 1.8 times as long", redis_py, redis_py >= 1.8),
        ("setnx + delete through redis-py takes longer", setnx, setnx > 1),
        ("a pair takes at most 1.15 PING pairs", over_ping, over_ping <= 1.15),
    ]

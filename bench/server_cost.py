"""What a lock costs the server: microseconds a pair by its own account, and bytes a held lock.

Beside it the plain pair that a lease needs at the least: ``SET NX PX`` and a compare-and-delete
script. Each goes one request at a time; the server's ``commandstats`` count.
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

import lualock
from bench.server import Server

COMPARE_AND_DELETE = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)
PAIRS = 2000
ROUNDS, QUICK_ROUNDS = 15, 5
KEYS = 2000


@dataclass(frozen=True)
class Row:
    """``pair_us``: the server's time for acquire and release; ``held_bytes``: one held lock, with
    what the server needs around it (``used_memory`` over many locks)."""

    name: str
    pair_us: float
    times_plain: float
    held_bytes: float


PLAIN = "SET NX PX + compare-and-delete"


def run(server: Server, *, quick: bool) -> list[Row]:
    """Both ways, in turn, round after round."""
    client: Any = redis.Redis.from_url(server.unix_url)
    locks = lualock.connect(server.unix_url)
    delete = client.register_script(COMPARE_AND_DELETE)
    token = secrets.token_hex(16)
    lock = locks.lock("cost", ttl=30)

    def plain() -> None:
        client.set("cost", token, nx=True, px=30_000)
        delete(keys=["cost"], args=[token])

    def ours() -> None:
        lock.acquire().release()

    ways: dict[str, Callable[[], None]] = {PLAIN: plain, "lualock": ours}
    took_us: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        for name, pair in ways.items():
            took_us[name].append(_server_us(client, pair))
    # Released locks and plain ones weigh on the same dictionary: each way starts with an empty one.
    held = {PLAIN: _held(client, lambda i: client.set(f"cost:{i}", token, px=60_000))}
    held["lualock"] = _held(client, lambda i: locks.lock(f"cost:{i}", ttl=60).acquire())
    client.flushall()
    client.close()
    locks.close()
    base = took_us[PLAIN]
    return [
        Row(
            name,
            statistics.median(took),
            statistics.median(t / b for t, b in zip(took, base, strict=True)),
            held[name],
        )
        for name, took in took_us.items()
    ]


def _server_us(client: Any, pair: Callable[[], None]) -> float:
    pair()
    client.config_resetstat()
    for _ in range(PAIRS):
        pair()
    stats = client.info("commandstats")
    # Commands that a script calls are counted in its own time and must not count twice.
    scripts = stats["cmdstat_evalsha"]
    used_us = float(scripts["usec"])
    if scripts["calls"] == PAIRS:  # the plain pair has one script; its SET is a command of its own
        used_us += stats["cmdstat_set"]["usec"]
    return used_us / PAIRS


def _held(client: Any, hold: Callable[[int], object]) -> float:
    hold(0)  # the connection and the script are there already
    client.execute_command("FLUSHALL", "SYNC")
    before = client.info("memory")["used_memory"]
    kept = [hold(number) for number in range(KEYS)]
    used = client.info("memory")["used_memory"] - before
    del kept
    client.flushall()
    return float(used) / KEYS

"""Very many locks held at once: the server's memory for each, and the time to acquire them.

The memory is the growth of ``used_memory``, so it includes the server's own tables. These grow by
doubling, so only the ratio to a plain string key in the same run counts: the key that ``SET NX PX``
writes with a token of 32 digits, as redis-py's ``Lock`` does. lualock acquires real leases, in a
thousand tasks of one event loop at a time, and that is timed. The plain keys are written by a
script, whose time means nothing.

"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

from bench import rivals
from bench.setting import Setting, Targets
from lualock import aio

LOCKS, QUICK_LOCKS = 1_000_000, 50_000
TASKS, BATCH = 1000, 10_000
TTL_S = 3600
WRITE = """
for number = ARGV[1], ARGV[2] do
  local token = string.sub(redis.sha1hex(number), 1, 32)
  redis.call('SET', string.format('held:%d', number), token, 'NX', 'PX', ARGV[3])
end
"""

TITLE = "very many locks held at once"
WORDS = __doc__
MISSING = "-"
COLUMNS = (
    ("", "rival"),
    ("locks", "locks:,"),
    ("bytes a lock", "bytes_each:.0f"),
    ("times a plain string key", "times_plain:.2f"),
    ("s to take them all", "took_s:.1f"),
)


@dataclass(frozen=True)
class Row:
    """``bytes_each``: a held lock, with what the server needs around it."""

    rival: str
    locks: int
    bytes_each: float
    times_plain: float
    took_s: float | None


def run(setting: Setting) -> list[Row]:
    """Measure each way once, on a server that is empty at first."""
    locks = QUICK_LOCKS if setting.quick else LOCKS
    ways: dict[str, Callable[[], None]] = {
        rivals.PLAIN: partial(_keys, setting, locks),
        rivals.LUALOCK: partial(_leases, setting, locks),
    }
    measured = {}
    with redis.Redis.from_url(setting.server.unix_url) as client:
        for name, hold in ways.items():
            client.execute_command("FLUSHALL", "SYNC")
            before, start = _used(client), time.monotonic()
            hold()
            took_s = time.monotonic() - start
            if client.dbsize() < locks:
                raise RuntimeError(f"{name}: only {client.dbsize():,} of {locks:,} are held")
            measured[name] = ((_used(client) - before) / locks, took_s)
        client.execute_command("FLUSHALL", "SYNC")
    plain, _ = measured[rivals.PLAIN]
    return [
        Row(name, locks, each, each / plain, took_s if name == rivals.LUALOCK else None)
        for name, (each, took_s) in measured.items()
    ]


def _used(client: Any) -> int:
    found: int = client.info("memory")["used_memory"]
    return found


def _keys(setting: Setting, locks: int) -> None:
    with redis.Redis.from_url(setting.server.unix_url) as client:
        for first in range(0, locks, BATCH):
            client.eval(WRITE, 0, first, min(locks, first + BATCH) - 1, TTL_S * 1000)


def _leases(setting: Setting, locks: int) -> None:
    async def hold() -> None:
        async with aio.connect(setting.server.unix_url) as made:
            numbers = iter(range(locks))

            async def work() -> None:
                for number in numbers:
                    await made.lock(f"held:{number}", ttl=TTL_S).acquire()

            await asyncio.gather(*(work() for _ in range(min(TASKS, locks))))

    asyncio.run(hold())


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    times = next(row.times_plain for row in rows if row.rival == rivals.LUALOCK)
    return [("a held lock takes at most twice a plain key's memory", times, times <= 2)]

"""Very many leases held by one process: the cost of their renewal, and whether all stay held.

One thread, or one event loop, renews them all. This measures the processor time of the whole
process while it does nothing else, for as long as it takes to renew each lease once.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import redis

import lualock
from bench.server import Server
from bench.setting import Setting, Targets
from lualock import aio

LEASES, QUICK_LEASES = 10_000, 1000
TTL_S, QUICK_TTL_S = 30.0, 3.0  # as many renewals a second in both


TITLE = "very many leases held by one process"
WORDS = __doc__
COLUMNS = (
    ("renewed by", "api"),
    ("leases", "leases:,"),
    ("ttl (s)", "ttl_s:.0f"),
    ("of one core", "core:.3f"),
    ("scripts a second", "per_s:,.0f"),
    ("server reads each", "sent_each:.3f"),
    ("lost", "lost"),
)


@dataclass(frozen=True)
class Row:
    """``core``: the share of one core that the process used, its server's not included;
    ``per_s``: scripts a second; ``sent_each``: reads of the server per script, so less than one
    shows that they were sent together; ``lost``: how many leases were."""

    api: str
    leases: int
    ttl_s: float
    core: float
    per_s: float
    sent_each: float
    lost: int


def run(setting: Setting) -> list[Row]:
    """Measure a thread, and an event loop."""
    server, quick = setting.server, setting.quick
    leases, ttl_s = (QUICK_LEASES, QUICK_TTL_S) if quick else (LEASES, TTL_S)
    return [_thread(server, leases, ttl_s), asyncio.run(_loop(server, leases, ttl_s))]


class _Meter:
    """Measures what was used since it was made."""

    def __init__(self, server: Server) -> None:
        self._client: Any = redis.Redis.from_url(server.unix_url)
        self._client.config_resetstat()
        self._reads = self._total("total_reads_processed")
        self._used, self._began = time.process_time(), time.monotonic()

    def _total(self, what: str) -> int:
        found: int = self._client.info("stats").get(what, 0)
        return found

    def row(self, api: str, ttl_s: float, held: list[bool]) -> Row:
        used, took_s = time.process_time() - self._used, time.monotonic() - self._began
        stats: Any = self._client.info("commandstats")
        scripts = stats.get("cmdstat_evalsha", {}).get("calls", 0)
        reads = self._total("total_reads_processed") - self._reads
        self._client.close()
        lost = held.count(False)
        each = reads / max(1, scripts)
        return Row(api, len(held), ttl_s, used / took_s, scripts / took_s, each, lost)


def _thread(server: Server, count: int, ttl_s: float) -> Row:
    with lualock.connect(server.tcp_url) as locks:
        leases = [locks.lock(f"l{n}", ttl=ttl_s, renew=True).acquire() for n in range(count)]
        meter = _Meter(server)
        time.sleep(ttl_s / 3)
        row = meter.row("a thread", ttl_s, [lease.held for lease in leases])
        for lease in leases:
            lease.release()
    return row


async def _loop(server: Server, count: int, ttl_s: float) -> Row:
    async with aio.connect(server.tcp_url) as locks:
        made = (locks.lock(f"l{n}", ttl=ttl_s, renew=True) for n in range(count))
        leases = await asyncio.gather(*(lock.acquire() for lock in made))
        meter = _Meter(server)
        await asyncio.sleep(ttl_s / 3)
        row = meter.row("an event loop", ttl_s, [lease.held for lease in leases])
        await asyncio.gather(*(lease.release() for lease in leases))
    return row


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    core = max(row.core for row in rows)
    lost = sum(row.lost for row in rows)
    return [
        (f"renewing {rows[0].leases:,} leases takes less than 0.1 of a core", core, core < 0.1),
        ("none of them is lost", lost, lost == 0),
    ]

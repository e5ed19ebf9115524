"""The same lock on every server that is installed here: a pair of a free lock, over TCP."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial

from bench import rivals, uncontended
from bench.server import Server, started
from bench.setting import Setting, Targets
from bench.stats import ratio
from lualock.embedded import binaries

RIVALS = [rivals.LUALOCK, rivals.SETNX, rivals.PLAIN, rivals.REDIS_PY, rivals.PYTHON_REDIS_LOCK]

TITLE = "the same on every server"
WORDS = "The system places the processes, so only the ratios of a row count."
COLUMNS = (
    ("server", "server"),
    ("", "rival"),
    ("µs a pair", "median_us:.1f"),
    ("times lualock's", "times_lualock:.2f"),
)


@dataclass(frozen=True)
class Row:
    """One rival on one server."""

    server: str
    rival: str
    median_us: float
    times_lualock: float


def run(setting: Setting) -> list[Row]:
    """Measure one server after the other; record one that does not start or is too old."""
    rows: list[Row] = []
    every = binaries.every()
    for binary in every:
        try:
            with started(binary.path) as server:
                rows += _measure(setting, server, 1 / len(every))
        except Exception as error:
            setting.breaks(f"server {binary.name}", "servers", error)
    return rows


def _measure(setting: Setting, server: Server, share: float) -> list[Row]:
    names = [name for name in RIVALS if name in setting.sync]
    here = replace(setting, server=server, sync=names)
    with uncontended.ways(here, server.tcp_url) as found:
        ways = {name: partial(uncontended.time_pair, pair) for name, pair in found.items()}
        for limit in uncontended.LIMITS[1:]:
            del ways[limit]
        took = here.rounds(f"servers, {server.version}", ways, share=share)
    ours = took[rivals.LUALOCK]
    return [
        Row(server.version, name, statistics.median(many), ratio(many, ours))
        for name, many in took.items()
    ]


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    worst = min(row.times_lualock for row in rows if row.rival == rivals.REDIS_PY)
    return [("redis-py's Lock takes longer on every server", worst, worst > 1)]

"""What a lock costs the server: microseconds a pair by its own account (``INFO commandstats``).

Each way sends one request at a time, with client and server on one core: a server that slept on
another core takes longer, and not always equally. Commands that a script calls count in the
script's time, not twice. The floor is two scripts that read a key, write it with a time to live,
and decide nothing. Left out are pottery, whose time is not in commands, and portalocker and
python-redilock, which cannot use a unix socket.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import redis

from bench import rivals, uncontended
from bench.setting import Setting, Targets
from bench.stats import ratio

PAIRS, QUICK_PAIRS = 1000, 500
LEFT_OUT = ("pottery", "portalocker", "python-redilock")

FLOOR = "two scripts, a read and a write each"
READ_AND_WRITE = """\
local was = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', '30000')
return was
"""
HELD, RELEASED = "H" * 80, "R" * 39  # as long as lualock's records are

TITLE = "what it costs the server"
WORDS = __doc__
COLUMNS = (
    ("", "rival"),
    ("server µs a pair", "pair_us:.2f"),
    ("times the plain pair", "times_plain:.2f"),
    ("of it scripts", "scripts_us:.2f"),
)
SCRIPTS = ("evalsha", "eval", "fcall")


@dataclass(frozen=True)
class Row:
    """``pair_us``: the server's time for acquire and release, ``scripts_us`` the part in scripts;
    ``times_plain``: times SET NX PX + compare-and-delete (median of the rounds' ratios)."""

    rival: str
    pair_us: float
    scripts_us: float
    times_plain: float


def run(setting: Setting) -> list[Row]:
    """Measure all ways in turn, round after round."""
    url = setting.server.unix_url
    pairs = QUICK_PAIRS if setting.quick else PAIRS
    kept = [name for name in setting.sync if not name.startswith(LEFT_OUT) and "polls" not in name]
    narrowed = replace(setting, sync=kept)
    with (
        uncontended.placed(uncontended.placements()[0], setting.server.pid),
        redis.Redis.from_url(url) as client,
        uncontended.ways(narrowed, url) as found,
    ):
        ways = {
            name: partial(_server_us, client, pair, pairs)
            for name, pair in found.items()
            if name not in uncontended.LIMITS
        }
        ways[FLOOR] = partial(_server_us, client, _floor(client), pairs)
        took = setting.rounds("server_cost", ways)
    plain = [pair_us for pair_us, _ in took[rivals.PLAIN]]
    rows = []
    for name, many in took.items():
        pair_us, scripts_us = [pair for pair, _ in many], [scripts for _, scripts in many]
        medians = statistics.median(pair_us), statistics.median(scripts_us)
        rows.append(Row(name, *medians, ratio(pair_us, plain)))
    return rows


def _floor(client: Any) -> Callable[[], object]:
    script = client.script_load(READ_AND_WRITE)
    evaluate = partial(client.evalsha, script, 1, "bench-floor")
    return lambda: (evaluate(HELD), evaluate(RELEASED))


def _server_us(client: Any, pair: Callable[[], object], pairs: int) -> tuple[float, float]:
    pair()
    client.config_resetstat()
    for _ in range(pairs):
        pair()
    stats = client.info("commandstats")
    scripts = sum(stats[f"cmdstat_{n}"]["usec"] for n in SCRIPTS if f"cmdstat_{n}" in stats)
    alone = _alone_us(stats, pairs)
    return (scripts + alone) / pairs, scripts / pairs


def _alone_us(stats: Any, pairs: int) -> float:
    """Return the time of commands that were sent directly and not by a script: without scripts all
    of them, else those that acquire (SET NX, as every rival of this table does)."""
    names = {name.removeprefix("cmdstat_"): one for name, one in stats.items()}
    for own in ("config|resetstat", "info", "config"):
        names.pop(own, None)
    calls = sum(one["calls"] for name, one in names.items() if name in SCRIPTS)
    if not calls:
        return float(sum(one["usec"] for one in names.values()))
    if calls >= 2 * pairs:
        return 0.0
    return float(names.get("set", {"usec": 0})["usec"])


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    times = next(row.times_plain for row in rows if row.rival == rivals.LUALOCK)
    return [("the server's time is at most twice the plain pair's", times, times <= 2)]

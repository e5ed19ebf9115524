"""Many processes, one lock, and no work while it is held: how fast the lock changes its holder.

What counts is changes of holder: acquisitions by another process than the previous one. A process
that releases the lock and takes it again at once, while others wait, is fast, but serves no waiter.
A wait counts for those changes, and for the processes that still wait at the end. The fastest
rivals at 32 processes are measured several times there and with two processes, all others once.

"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from bench import crowd, rivals
from bench.setting import Setting, Targets
from bench.stats import quantile, ratio

PROCESSES, QUICK_PROCESSES = (2, 8, 32, 64), (2, 32)
JUDGED = 32
FASTEST = 4  # have more than one round
ALSO = ("redis-fifo-lock",)  # asyncio only, and nearest in kind
LEFT_OUT = (rivals.RENEWED,)  # the same as lualock here
# One of each kind of waiting, for a quick run.
QUICK = (
    *(rivals.LUALOCK, rivals.PLAIN, rivals.REDIS_PY, rivals.PYTHON_REDIS_LOCK),
    *("redis-lock-py", "redis-fifo-lock"),
)

TITLE = "one lock, many processes"
WORDS = __doc__.partition("\n\n")[2]
COLUMNS = (
    ("", "rival"),
    ("processes", "processes"),
    ("changes of holder/s", "per_s:,.0f"),
    ("times lualock's", "times_lualock:.2f"),
    ("acquisitions/s", "acquisitions_per_s:,.0f"),
    ("ms wait, p50", "wait_p50_ms:,.2f"),
    ("p99", "wait_p99_ms:,.2f"),
    ("p99, times lualock's", "p99_times_lualock:.2f"),
    ("longest", "wait_max_ms:,.0f"),
    ("PUBLISH each", "published:.2f"),
    ("commands each", "commands:.1f"),
    ("times its own with fewest", "times_fewest:.2f"),
)


@dataclass(frozen=True)
class Row:
    """One rival at one number of processes (medians of the rounds; ``wait_max_ms``: of all)."""

    rival: str
    processes: int
    per_s: float
    acquisitions_per_s: float
    wait_p50_ms: float
    wait_p99_ms: float
    wait_max_ms: float
    published: float
    commands: float
    times_lualock: float
    p99_times_lualock: float
    times_fewest: float


@dataclass(frozen=True)
class _Seen:
    per_s: float
    acquisitions_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    published: float
    commands: float


def crowds(setting: Setting) -> list[str]:
    """Return the rivals that crowds of processes are made of."""
    also = [name for name in ALSO if name in setting.tasks]
    names = [name for name in setting.sync if name not in LEFT_OUT] + also
    return [name for name in names if name in QUICK] if setting.quick else names


def run(setting: Setting) -> list[Row]:
    """Measure all rivals at each number of processes; then, round after round, the fastest ones at
    32 and at the fewest."""
    counts = QUICK_PROCESSES if setting.quick else PROCESSES
    spots = {
        f"{name}, {processes} processes": (name, processes)
        for name in crowds(setting)
        for processes in counts
    }

    def see(chosen: Iterable[str], share: float, least: int) -> dict[str, list[_Seen]]:
        ways = {spot: partial(_see, setting, *spots[spot]) for spot in chosen}
        return setting.rounds("contention", ways, share=share, least=least)

    found = see(spots, share=0, least=1)
    if setting.least > 1:
        rates = {spots[s][0]: seen[0].per_s for s, seen in found.items() if spots[s][1] == JUDGED}
        fastest = {rivals.LUALOCK, *sorted(rates, key=lambda name: -rates[name])[:FASTEST]}
        again = [(name, processes) for processes in (JUDGED, min(counts)) for name in fastest]
        chosen = [spot for spot in found if spots[spot] in again]
        for spot, seen in see(chosen, share=0.3, least=setting.least - 1).items():
            found[spot] += seen
    measured = {spots[spot]: seen for spot, seen in found.items()}
    rows = []
    for (name, processes), seen in measured.items():
        ours = measured[rivals.LUALOCK, processes]
        few = measured.get((name, min(counts)), seen)
        rows.append(_row(name, processes, seen, ours, few))
    return rows


def _row(name: str, processes: int, seen: list[_Seen], ours: list[_Seen], few: list[_Seen]) -> Row:
    rates, p99s = [one.per_s for one in seen], [one.p99_ms for one in seen]
    return Row(
        name,
        processes,
        statistics.median(rates),
        statistics.median(one.acquisitions_per_s for one in seen),
        statistics.median(one.p50_ms for one in seen),
        statistics.median(p99s),
        max(one.max_ms for one in seen),
        statistics.median(one.published for one in seen),
        statistics.median(one.commands for one in seen),
        ratio(rates, [one.per_s for one in ours]),
        ratio(p99s, [one.p99_ms for one in ours]),
        ratio(rates, [one.per_s for one in few]),
    )


def _see(setting: Setting, name: str, processes: int) -> _Seen:
    seen = crowd.gather(setting, name, processes)
    taken = len(seen.turns)
    waits_ms = [1000 * wait for wait in seen.waits()] or [0.0]
    # A script that PUBLISHes counts as both.
    return _Seen(
        sum(1 for _ in seen.hand_overs()) / seen.run_s,
        taken / seen.run_s,
        quantile(waits_ms, 0.5),
        quantile(waits_ms, 0.99),
        max(waits_ms),
        seen.commands["publish"] / taken,
        sum(seen.commands.values()) / taken,
    )


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    most = JUDGED if any(row.processes == JUDGED for row in rows) else rows[-1].processes
    at = [row for row in rows if row.processes == most]
    ours = next(row for row in at if row.rival == rivals.LUALOCK)
    best = max((row for row in at if row is not ours), key=lambda row: row.per_s)
    times = 1 / best.times_lualock
    kept, shorter = ours.times_fewest, best.p99_times_lualock
    return [
        (
            f"{most} processes: at least 2.5 times the best rival's rate",
            times,
            times >= 2.5,
        ),
        (
            f"{most} processes: the best rival's p99 wait is 3 times lualock's",
            shorter,
            shorter >= 3,
        ),
        (f"{most} processes are at least 0.8 times as fast as the fewest", kept, kept >= 0.8),
        ("at most one PUBLISH per hand-over", ours.published, ours.published <= 1.01),
    ]

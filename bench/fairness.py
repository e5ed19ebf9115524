"""Which process gets the lock: sixteen processes contend, each holds it for a millisecond.

The share of the least served process in that of the most served (1: all alike, 0: one never had the
lock), Jain's index over all of them (1: all alike; 1/16: one had it always), and the longest wait,
including processes that still wait at the end.

"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

from bench import contention, crowd, rivals
from bench.setting import Setting, Targets

PROCESSES, HOLD_S = 16, 0.001

TITLE = "which process gets the lock"
WORDS = __doc__
COLUMNS = (
    ("", "rival"),
    ("least / most served", "least_to_most:.2f"),
    ("Jain's index", "jain:.2f"),
    ("ms, longest wait", "longest_ms:,.0f"),
    ("acquisitions/s", "per_s:,.0f"),
)


@dataclass(frozen=True)
class Row:
    """Medians of the rounds; ``longest_ms``: of all."""

    rival: str
    least_to_most: float
    jain: float
    longest_ms: float
    per_s: float


def run(setting: Setting) -> list[Row]:
    """Measure all rivals, round after round."""
    ways = {
        name: partial(crowd.gather, setting, name, PROCESSES, hold_s=HOLD_S)
        for name in contention.crowds(setting)
    }
    return [_row(name, many) for name, many in setting.rounds("fairness", ways).items()]


def _row(name: str, many: list[crowd.Crowd]) -> Row:
    shares = [seen.shares() for seen in many]
    longest = max(wait for seen in many for wait in seen.waits() or [0.0])
    return Row(
        name,
        statistics.median(min(one) / max(one) for one in shares),
        statistics.median(jain(one) for one in shares),
        longest * 1000,
        statistics.median(len(seen.turns) / seen.run_s for seen in many),
    )


def jain(shares: list[int]) -> float:
    """Return Jain's index of fairness."""
    return float(sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares)))


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    ours = next(row for row in rows if row.rival == rivals.LUALOCK)
    least = ours.least_to_most
    return [("the least served process has at least 0.8 of the most served", least, least >= 0.8)]

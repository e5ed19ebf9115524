"""How long the lock has no holder, from the beginning of a release to the next acquisition.

Four processes always contend, and each holds the lock for a millisecond. So this measures the way
from one holder to the next, and not how many processes fit a core.

"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

from bench import contention, crowd, rivals
from bench.setting import Setting, Targets
from bench.stats import quantile, ratio

PROCESSES, HOLD_S = 4, 0.001
SEEN_FOR_P99, SEEN_FOR_P999 = 100, 1000  # so that so rare a value can occur

TITLE = "from the release to the next holder"
WORDS = __doc__
MISSING = "too few seen"
COLUMNS = (
    ("", "rival"),
    ("hand-overs seen", "seen"),
    ("µs, p50", "p50_us:,.0f"),
    ("p99", "p99_us:,.0f"),
    ("p99.9", "p999_us:,.0f"),
    ("p50, times lualock's", "times_lualock:.2f"),
)


@dataclass(frozen=True)
class Row:
    """One rival's hand-overs, all rounds together; the ratio is of the rounds' medians."""

    rival: str
    seen: int
    p50_us: float
    p99_us: float | None
    p999_us: float | None
    times_lualock: float


def run(setting: Setting) -> list[Row]:
    """Measure all rivals, round after round."""
    ways = {name: partial(_latencies_us, setting, name) for name in contention.crowds(setting)}
    found = setting.rounds("hand_over", ways)
    medians = {name: [statistics.median(one) for one in many] for name, many in found.items()}
    rows = []
    for name, many in found.items():
        pooled = [latency for one in many for latency in one]
        seen = len(pooled)
        p99 = quantile(pooled, 0.99) if seen >= SEEN_FOR_P99 else None
        p999 = quantile(pooled, 0.999) if seen >= SEEN_FOR_P999 else None
        times = ratio(medians[name], medians[rivals.LUALOCK])
        rows.append(Row(name, seen, quantile(pooled, 0.5), p99, p999, times))
    return rows


def _latencies_us(setting: Setting, name: str) -> list[float]:
    seen = crowd.gather(setting, name, PROCESSES, hold_s=HOLD_S)
    latencies = [
        (after.acquired - max(before.released, after.requested)) * 1e6
        for before, after in seen.hand_overs()
    ]
    if not latencies:
        raise RuntimeError(f"no hand-over among {len(seen.turns)} acquisitions")
    return latencies


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    best = min(row.times_lualock for row in rows if row.rival != rivals.LUALOCK)
    return [("no rival hands over sooner (p50, the best rival's times lualock's)", best, best >= 1)]

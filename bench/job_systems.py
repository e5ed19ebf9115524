"""What a lock adds to a job in a job system.

The system's own worker runs empty jobs one after the other, and the same jobs each with its own
lock. Each system has its own process, and both kinds of job alternate. RQ is measured without its
fork for each job, which would hide the lock.

"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import redis

from bench import job_worker
from bench.setting import Setting, Targets
from bench.stats import ratio

ROUNDS, QUICK_ROUNDS = 5, 3
JOBS, QUICK_JOBS = 200, 50  # of each kind in a round
LIMIT_S = 60.0
SYSTEMS = tuple(job_worker.SYSTEMS)
# Where `make` installs the systems that need an older redis-py.
APART = Path(sys.prefix) / "apart" / "bin" / "python"
ADDED_MAX_MS = 2.0

TITLE = "what a lock adds to a job in a job system"
WORDS = __doc__
COLUMNS = (
    ("", "system"),
    ("µs a job", "plain_us:,.0f"),
    ("µs with a lock", "locked_us:,.0f"),
    ("added", "added_us:,.0f"),
    ("times", "times:.2f"),
)


@dataclass(frozen=True)
class Row:
    """Medians of microseconds a job, and the medians of the rounds' differences and ratios."""

    system: str
    plain_us: float
    locked_us: float
    added_us: float
    times: float


def run(setting: Setting) -> list[Row]:
    """Measure one system after the other."""
    rows = []
    for system in SYSTEMS:
        try:
            took_us = _took_us(setting, system)
        except (RuntimeError, subprocess.SubprocessError) as error:
            setting.breaks(system, "job_systems", error)
            continue
        plain, locked = zip(*took_us, strict=True)
        added = median(after - before for before, after in took_us)
        rows.append(Row(system, median(plain), median(locked), added, ratio(locked, plain)))
    return rows


def _took_us(setting: Setting, system: str) -> list[tuple[float, float]]:
    """Return microseconds a job, plain and locked, of each round."""
    python = sys.executable if find_spec(system) is not None else str(APART)
    url, quick = setting.server.tcp_url, setting.quick
    rounds, jobs = (QUICK_ROUNDS, QUICK_JOBS) if quick else (ROUNDS, JOBS)
    with redis.Redis.from_url(url) as client:
        client.flushall()
    done = subprocess.run(
        [python, "-m", "bench.job_worker", system, url, str(rounds), str(jobs)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-300:])
    times = json.loads(done.stdout.splitlines()[-1])
    return [(plain * 1e6, locked * 1e6) for plain, locked in times]


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    most = max(row.added_us for row in rows) / 1000
    claim = f"ms that the lock adds to a job, at most {ADDED_MAX_MS:g} in every system"
    return [(claim, most, most <= ADDED_MAX_MS)]

"""What the lock adds to a job in a job system: the system's own worker works off jobs that do
nothing, one after the other, and the same jobs each behind its own lock. A process for each
measurement, and both ways in turn. RQ is measured without its fork for each job, which would cover
the lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import redis

from bench import job_worker
from bench.setting import Setting, Targets
from bench.stats import ratio

ROUNDS, QUICK_ROUNDS = 3, 1
JOBS, QUICK_JOBS = 800, 300
SYSTEMS = tuple(job_worker.SYSTEMS)
# Where `make` has put the systems that hold redis-py back.
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
    """All systems, without and with the lock."""
    jobs = QUICK_JOBS if setting.quick else JOBS
    ways: dict[str, Callable[[], float]] = {
        f"{system} {way}": partial(_us_a_job, setting.server.tcp_url, system, way, jobs)
        for system in SYSTEMS
        for way in ("plain", "locked")
    }
    took = setting.rounds("job_systems", QUICK_ROUNDS if setting.quick else ROUNDS, ways)
    rows = []
    for system in SYSTEMS:
        plain, locked = took.get(f"{system} plain"), took.get(f"{system} locked")
        if plain and locked:
            added = median(after - before for after, before in zip(locked, plain, strict=False))
            times = ratio(locked, plain)
            rows.append(Row(system, median(plain), median(locked), added, times))
    return rows


def _us_a_job(url: str, system: str, way: str, jobs: int) -> float:
    here = find_spec(system) is not None
    python = sys.executable if here else str(APART)
    with redis.Redis.from_url(url) as client:
        client.flushall()
    done = subprocess.run(
        [python, "-m", "bench.job_worker", system, way, url, str(jobs)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-300:])
    return float(done.stdout.splitlines()[-1]) / (jobs - 1) * 1e6


def targets(rows: list[Row]) -> Targets:
    """What must show: the claim, the figure of this run, and whether it is met."""
    most = max(row.added_us for row in rows) / 1000
    claim = f"ms that the lock adds to a job, at most {ADDED_MAX_MS:g} in every system"
    return [(claim, most, most <= ADDED_MAX_MS)]

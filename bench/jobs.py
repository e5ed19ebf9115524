"""What a lock adds to a job: a function with ``locks.job``, beside the plain function.

Also beside the same function in the rivals' ``with`` or decorator.

"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import rivals, uncontended
from bench.rivals.base import Rival
from bench.setting import Setting, Targets
from bench.stats import ratio, spread

CALLED, JOB, WITH = "the function itself", "lualock, locks.job", "lualock, with"
RIVALS = (rivals.REDIS_PY, rivals.PYTHON_REDIS_LOCK, "redis-lock-py", "python-redilock")

TITLE = "what a lock adds to a job"
WORDS = __doc__
COLUMNS = (
    ("", "rival"),
    ("µs a call", "median_us:.1f"),
    ("p10", "p10_us:.1f"),
    ("p90", "p90_us:.1f"),
    ("times locks.job", "times_job:.2f"),
)


@dataclass(frozen=True)
class Row:
    """Microseconds a call (median and spread), and the median of the rounds' ratios."""

    rival: str
    median_us: float
    p10_us: float
    p90_us: float
    times_job: float


def job(number: int) -> int:
    """Do next to nothing: the work itself."""
    return number + 1


def run(setting: Setting) -> list[Row]:
    """Measure all ways in turn, round after round."""
    with _ways(setting) as found:
        ways = {name: partial(uncontended.time_pair, call) for name, call in found.items()}
        took = setting.rounds("jobs", ways)
    return [Row(name, *spread(many), ratio(many, took[JOB])) for name, many in took.items()]


@contextmanager
def _ways(setting: Setting) -> Iterator[dict[str, Callable[[], object]]]:
    names = [name for name in RIVALS if name in setting.sync]
    url = setting.server.tcp_url
    ours: Any = rivals.sync(rivals.LUALOCK, url)
    theirs = {name: rivals.sync(name, url) for name in names}
    locked = ours.locks.job(ttl=30)(job)
    ways: dict[str, Callable[[], object]] = {
        CALLED: lambda: job(17),
        JOB: lambda: locked(17),
        WITH: partial(_in_with, ours),
    }
    try:
        yield ways | {name: partial(_in_with, rival) for name, rival in theirs.items()}
    finally:
        for rival in [ours, *theirs.values()]:
            rival.close()


def _in_with(rival: Rival) -> int:
    """Use a lock without a decorator: its name is made of the job's argument."""
    number = 17
    with rival.lock(f"job{number}"):
        return job(number)


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    times = {row.rival: row.times_job for row in rows}
    redis_py = times[rivals.REDIS_PY]
    return [("a job in redis-py's Lock takes longer than locks.job", redis_py, redis_py > 1)]

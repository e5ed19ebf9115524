"""Many processes, one lock, nothing to do while it is held: how fast it goes from one to the next.

Every process takes and gives back the lock a fixed number of times, each rival with its default
settings. The rate counts until the last process is done, so starving somebody costs what it costs.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from dataclasses import dataclass
from typing import Any

import redis

import lualock
from bench.server import Server

PROCESSES = (2, 8, 32)
ROUNDS, QUICK_ROUNDS = 5, 2
LUALOCK, REDIS_LOCK, REDIS_PY = "lualock", "python-redis-lock", "redis-py Lock"
# Times each process takes the lock: as many as make a run of about a second.
TURNS = {LUALOCK: 16_000, REDIS_LOCK: 6000, REDIS_PY: 400}
WARM_UP_TURNS = 5  # of each process, all together: who never waited has no connection to wait on


@dataclass(frozen=True)
class Row:
    """One rival at one number of processes: hand-overs per second (median of the rounds), how much
    longer the last process took than the first, PUBLISH commands per acquisition, and the rate in
    times lualock's with as many processes, and in times its own with the fewest."""

    rival: str
    processes: int
    per_s: float
    spread: float
    published: float
    times_lualock: float
    times_fewest: float


def run(server: Server, *, quick: bool) -> list[Row]:
    """Round after round, all numbers of processes, and all rivals in turn."""
    measured: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        for processes in PROCESSES:
            for name, turns in TURNS.items():
                raced = race(server, name, processes, turns // processes)
                measured.setdefault((name, processes), []).append(raced)
    rows = []
    for (name, processes), found in sorted(measured.items(), key=lambda item: item[0][1]):
        rates, spreads, published = zip(*found, strict=True)
        medians = [statistics.median(column) for column in (rates, spreads, published)]
        ours = [rate for rate, *_ in measured[LUALOCK, processes]]
        fewest = [rate for rate, *_ in measured[name, min(PROCESSES)]]
        # Rounds are compared one by one: the machine is not equally fast in all of them.
        ratios = [
            statistics.median(rate / other for rate, other in zip(rates, others, strict=True))
            for others in (ours, fewest)
        ]
        rows.append(Row(name, processes, *medians, *ratios))
    return rows


def race(server: Server, name: str, processes: int, turns: int) -> tuple[float, float, float]:
    """One run: the rate, the spread, and the messages per acquisition."""
    # Forked from one process that has imported everything, as pre-forking workers are.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.contention", "redis_lock"])
    ready, ended = context.Semaphore(0), context.Queue()
    warm_up, go = context.Event(), context.Event()
    rounds = ((warm_up, WARM_UP_TURNS), (go, turns))
    workers = [
        context.Process(target=_work, args=(server.tcp_url, name, rounds, ready, ended))
        for _ in range(processes)
    ]
    with redis.Redis.from_url(server.tcp_url) as client:
        client.flushall()
        for worker in workers:
            worker.start()
        for _ in workers:
            ready.acquire()
        warm_up.set()
        for _ in workers:
            ready.acquire()
        client.config_resetstat()
        start = time.monotonic()
        go.set()
        took = sorted(ended.get() - start for _ in workers)
        stats: Any = client.info("commandstats")
        for worker in workers:
            worker.join()
    published = stats.get("cmdstat_publish", {}).get("calls", 0)
    count = turns * processes
    return count / took[-1], took[-1] / took[0], published / count


def _work(url: str, name: str, rounds: Any, ready: Any, ended: Any) -> None:
    lock = _lock(url, name)
    for begins, turns in rounds:
        ready.release()
        begins.wait()
        for _ in range(turns):
            with lock():
                pass
    ended.put(time.monotonic())


def _lock(url: str, name: str) -> Any:
    """What makes the rival's lock, as its users write it."""
    if name == LUALOCK:
        ours = lualock.connect(url).lock("contended")
        return lambda: ours
    client = redis.Redis.from_url(url)
    if name == REDIS_PY:
        return lambda: client.lock("contended")
    import redis_lock  # type: ignore[import-untyped]  # a rival, only of this scenario

    return lambda: redis_lock.Lock(client, "contended")


def targets(rows: list[Row]) -> list[tuple[str, float, bool]]:
    """What must show: the claim, the figure of this run, and whether it is met."""
    found = {(row.rival, row.processes): row for row in rows}
    most = max(PROCESSES)
    ours = found[LUALOCK, most]
    redis_lock = 1 / found[REDIS_LOCK, most].times_lualock
    redis_py = 1 / found[REDIS_PY, most].times_lualock
    kept = ours.times_fewest
    return [
        (f"{most} processes: at least 2.5 times python-redis-lock", redis_lock, redis_lock >= 2.5),
        (f"{most} processes: at least 15 times redis-py's Lock", redis_py, redis_py >= 15),
        (f"{most} processes are at least 0.8 times as fast as 2", kept, kept >= 0.8),
        ("the last process is done within 1.2 times the first", ours.spread, ours.spread <= 1.2),
        ("at most one PUBLISH per hand-over", ours.published, ours.published <= 1),
    ]

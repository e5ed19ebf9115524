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
TURNS = {LUALOCK: 8000, REDIS_LOCK: 3000, REDIS_PY: 400}


@dataclass(frozen=True)
class Row:
    """One rival at one number of processes: hand-overs per second (median of the rounds), how much
    longer the last process took than the first, and PUBLISH commands per acquisition."""

    rival: str
    processes: int
    per_s: float
    spread: float
    published: float
    times_lualock: float


def run(server: Server, *, quick: bool) -> list[Row]:
    """All rivals in turn, round after round, at each number of processes."""
    rows = []
    for processes in PROCESSES:
        measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in TURNS}
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            for name in TURNS:
                measured[name].append(race(server, name, processes, TURNS[name] // processes))
        ours = [rate for rate, _, _ in measured[LUALOCK]]
        for name, found in measured.items():
            rates, spreads, published = zip(*found, strict=True)
            ratio = statistics.median(r / our for r, our in zip(rates, ours, strict=True))
            medians = [statistics.median(column) for column in (rates, spreads, published)]
            rows.append(Row(name, processes, medians[0], medians[1], medians[2], ratio))
    return rows


def race(server: Server, name: str, processes: int, turns: int) -> tuple[float, float, float]:
    """One run: the rate, the spread, and the messages per acquisition."""
    # Forked from one process that has imported everything, as pre-forking workers are.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.contention", "redis_lock"])
    ready, go, ended = context.Semaphore(0), context.Event(), context.Queue()
    workers = [
        context.Process(target=_work, args=(server.tcp_url, name, turns, ready, go, ended))
        for _ in range(processes)
    ]
    with redis.Redis.from_url(server.tcp_url) as client:
        client.flushall()
        for worker in workers:
            worker.start()
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


def _work(url: str, name: str, turns: int, ready: Any, go: Any, ended: Any) -> None:
    lock = _lock(url, name)
    with lock():  # connections, scripts, caches
        pass
    ready.release()
    go.wait()
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
    kept = ours.per_s / found[LUALOCK, min(PROCESSES)].per_s
    return [
        (f"{most} processes: at least 2.5 times python-redis-lock", redis_lock, redis_lock >= 2.5),
        (f"{most} processes: at least 15 times redis-py's Lock", redis_py, redis_py >= 15),
        (f"{most} processes are at least 0.8 times as fast as 2", kept, kept >= 0.8),
        ("the last process is done within 1.2 times the first", ours.spread, ours.spread <= 1.2),
        ("at most one PUBLISH per hand-over", ours.published, ours.published <= 1),
    ]

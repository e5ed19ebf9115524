"""A holder is killed (SIGKILL): how soon does a waiter have the lock?

The lease is a second long. The time counts from the end of that lease, measured from when the
holder acquired it. A lock that is bound to a connection and not to a lease may be free earlier (a
negative time). "Not in time" is later than 2 s (a quick run: 0.5 s). All rivals wait at once, each
for its own lock, because only waiting is measured.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import redis

from bench import contention, rivals
from bench.processes import CONTEXT
from bench.setting import Setting, Targets

TTL_S, KILL_AFTER_S, LIMIT_S, QUICK_LIMIT_S = 1.0, 0.3, 2.0, 0.5
READY_LIMIT_S = 20.0

TITLE = "a holder is killed"
WORDS = __doc__
COLUMNS = (
    ("", "rival"),
    ("ms after the lease's end, median", "late_ms:,.0f"),
    ("worst", "worst_ms:,.0f"),
    ("recovered", "recovered"),
    ("of", "times"),
)


@dataclass(frozen=True)
class Row:
    """``recovered`` of so many times. A time beyond the limit is not in the median; without any,
    that is ``None``."""

    rival: str
    late_ms: float | None
    worst_ms: float | None
    recovered: int
    times: int


def run(setting: Setting) -> list[Row]:
    """Measure all rivals, round after round."""
    names = contention.crowds(setting)
    found: dict[str, list[float | None]] = {name: [] for name in names}
    with ThreadPoolExecutor(len(names)) as pool:
        for _ in range(setting.least):
            with redis.Redis.from_url(setting.server.tcp_url) as client:
                client.flushall()  # rivals without a lease leave keys
            attempts = {name: pool.submit(_late_ms, setting, name) for name in found}
            for name, attempt in attempts.items():
                try:
                    found[name].append(attempt.result())
                except Exception as error:
                    setting.breaks(name, "recovery", error)
                    del found[name]
    rows = []
    for name, many in found.items():
        late = [one for one in many if one is not None]
        median, worst = (statistics.median(late), max(late)) if late else (None, None)
        rows.append(Row(name, median, worst, len(late), len(many)))
    return rows


def _late_ms(setting: Setting, name: str) -> float | None:
    url, limit_s = setting.server.tcp_url, QUICK_LIMIT_S if setting.quick else LIMIT_S
    processes, pipes = [], []
    try:
        for _ in range(2):  # both are connected before either begins
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_work, args=(url, name, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
            _receive(ours)
        holder, waiter = pipes
        holder.send("go")
        had = _receive(holder)
        waiter.send("go")
        time.sleep(KILL_AFTER_S)
        pid = processes[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        left_s = had + TTL_S - time.monotonic()
        if not waiter.poll(max(0.0, left_s) + limit_s):
            return None
        return (_receive(waiter) - (had + TTL_S)) * 1000
    finally:
        for process in processes:
            process.kill()
            process.join()


def _key(name: str) -> str:
    return "recovery" + "".join(filter(str.isalnum, name))


def _receive(pipe: Any) -> float:
    if not pipe.poll(READY_LIMIT_S):
        raise TimeoutError(f"no answer for {READY_LIMIT_S:.0f} s")
    try:
        answer = pipe.recv()
    except EOFError:
        raise RuntimeError("its process ended") from None
    if isinstance(answer, str):
        raise RuntimeError(answer)
    found: float = answer
    return found


def _work(url: str, name: str, pipe: Any) -> None:
    try:
        if name in rivals.TASKS:
            asyncio.run(_take_in_loop(url, name, pipe))
        else:
            lock = rivals.sync(name, url, TTL_S).lock(_key(name))
            pipe.send(0.0)
            pipe.recv()
            with lock:
                pipe.send(time.monotonic())
                time.sleep(READY_LIMIT_S)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


async def _take_in_loop(url: str, name: str, pipe: Any) -> None:
    use = rivals.tasks(name, url, TTL_S).reusable(_key(name))
    pipe.send(0.0)
    pipe.recv()
    async with use():
        pipe.send(time.monotonic())
        await asyncio.sleep(READY_LIMIT_S)


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    ours = next(row for row in rows if row.rival == rivals.LUALOCK)
    late = float("inf") if ours.late_ms is None else ours.late_ms
    met = late <= 100 and ours.recovered == ours.times
    return [("a killed holder is replaced within 100 ms of its lease's end (ms)", late, met)]

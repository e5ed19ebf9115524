"""Processes that contend for one lock, and the times of each acquisition.

Each process records when it requested, acquired and released the lock, on the clock that all
processes of a machine share, in shared memory. So the processes can be killed at any time, and a
rival that lets one starve costs no more time than another. A process that still waits at the end
has waited for at least that long.

"""

from __future__ import annotations

import asyncio
import mmap
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from bench import rivals
from bench.processes import CONTEXT
from bench.setting import Setting, within

WARM_UP_S, WARM_UP_EACH_S = 0.2, 0.02  # so that all have connected and had the lock
RUN_S, QUICK_RUN_S = 0.5, 0.3
MAX_TURNS = 200_000  # of one process; the files are sparse
SIZE = 8 * (2 + 3 * MAX_TURNS)
READY_LIMIT_S, LIFE_S = 30.0, 60.0


@dataclass(frozen=True)
class Turn:
    """One acquisition, in seconds of CLOCK_MONOTONIC."""

    worker: int
    requested: float
    acquired: float
    released: float


@dataclass(frozen=True)
class Crowd:
    """The results of the measured time. ``turns`` are in the order of ``acquired``; ``waiting`` has
    how long each process waited that still did at the end; ``commands`` are the server's."""

    processes: int
    run_s: float
    turns: list[Turn]
    waiting: list[float]
    commands: Counter[str]

    def hand_overs(self) -> Iterator[tuple[Turn, Turn]]:
        """Yield two consecutive turns of different processes."""
        for before, after in zip(self.turns, self.turns[1:], strict=False):
            if before.worker != after.worker:
                yield before, after

    def waits(self) -> list[float]:
        """Return the waits of the hand-overs, and of the processes that still wait."""
        return [after.acquired - after.requested for _, after in self.hand_overs()] + self.waiting

    def shares(self) -> list[int]:
        """Return how often each process had the lock."""
        counted = Counter(turn.worker for turn in self.turns)
        return [counted[worker] for worker in range(self.processes)]


def gather(setting: Setting, rival: str, processes: int, *, hold_s: float = 0.0) -> Crowd:
    """Let so many processes only take the lock, hold it and release it."""
    server, run_s = setting.server, QUICK_RUN_S if setting.quick else RUN_S
    with (
        tempfile.TemporaryDirectory(prefix="lualock-crowd-", dir="/tmp") as folder,
        redis.Redis.from_url(server.tcp_url) as client,
    ):
        client.flushall()
        answers = CONTEXT.SimpleQueue()
        begin = CONTEXT.Event()
        paths = [os.path.join(folder, str(number)) for number in range(processes)]
        workers = []
        try:
            for path in paths:
                with open(path, "wb") as file:
                    file.truncate(SIZE)
                arguments = (server.tcp_url, rival, path, hold_s, answers, begin)
                workers.append(CONTEXT.Process(target=_work, args=arguments, daemon=True))
                workers[-1].start()
            for _ in workers:
                _next(answers)
            begin.set()
            time.sleep(WARM_UP_S + WARM_UP_EACH_S * processes)
            client.config_resetstat()
            start = time.monotonic()
            time.sleep(run_s)
            end = time.monotonic()
            stats: Any = client.info("commandstats")
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join()
        if not answers.empty():
            _next(answers)
        logs = [_read(path) for path in paths]
    commands = Counter(
        {
            name.removeprefix("cmdstat_"): one["calls"]
            for name, one in stats.items()
            if not name.startswith(("cmdstat_config", "cmdstat_info"))
        }
    )
    seen = _crowd(logs, start, end, commands)
    if not seen.turns:
        raise RuntimeError(f"none of {processes} processes had the lock in {run_s} s")
    return seen


def _next(answers: Any) -> None:
    within(READY_LIMIT_S, lambda: not answers.empty(), "its processes are ready")
    if error := answers.get():
        raise RuntimeError(error)


def _crowd(logs: list[list[float]], start: float, end: float, commands: Counter[str]) -> Crowd:
    turns, waiting = [], []
    for worker, log in enumerate(logs):
        count, requested = int(log[0]), log[1]
        if 0 < requested < end:
            waiting.append(end - requested)
        logged = (Turn(worker, *log[at : at + 3]) for at in range(2, 2 + 3 * count, 3))
        turns += [turn for turn in logged if start <= turn.acquired <= end]
    turns.sort(key=lambda turn: turn.acquired)
    return Crowd(len(logs), end - start, turns, waiting, commands)


def _read(path: str) -> list[float]:
    with _log(path) as log:
        found: list[float] = log[: 2 + 3 * int(log[0])].tolist()
        return found


@contextmanager
def _log(path: str) -> Iterator[Any]:
    """Open a log: the number of turns, since when its process waits (0: it does not), and the
    turns."""
    with (
        open(path, "r+b") as file,
        mmap.mmap(file.fileno(), SIZE) as mapped,
        memoryview(mapped) as raw,
        raw.cast("d") as log,
    ):
        yield log


class _Recorder:
    """Records the turns of one process."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._at = 2
        self._give_up = time.monotonic() + LIFE_S

    def request(self) -> bool:
        """Record a request for the lock; return whether to make it."""
        self._requested = now = time.monotonic()
        self._log[1] = now
        return now < self._give_up and self._at < 3 * MAX_TURNS

    def acquired(self) -> None:
        self._acquired = time.monotonic()
        self._log[1] = 0.0

    def released(self) -> None:
        log, at = self._log, self._at
        log[at], log[at + 1], log[at + 2] = self._requested, self._acquired, time.monotonic()
        log[0] += 1
        self._at = at + 3


def _work(url: str, rival: str, path: str, hold_s: float, answers: Any, begin: Any) -> None:
    def ready(log: Any) -> _Recorder:
        answers.put("")
        begin.wait()
        return _Recorder(log)

    async def in_loop(log: Any) -> None:
        use = rivals.tasks(rival, url).reusable("crowd")
        recorder = ready(log)
        while recorder.request():
            async with use():
                recorder.acquired()
                if hold_s:
                    await asyncio.sleep(hold_s)
                recorder.released()

    def in_thread(log: Any) -> None:
        lock = rivals.sync(rival, url).lock("crowd")
        recorder = ready(log)
        while recorder.request():
            with lock:
                recorder.acquired()
                if hold_s:
                    time.sleep(hold_s)
                recorder.released()

    try:
        with _log(path) as log:
            if rival in rivals.TASKS:
                asyncio.run(in_loop(log))
            else:
                in_thread(log)
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")

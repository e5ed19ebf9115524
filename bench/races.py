"""Worker processes race for one lock while a fault disturbs them.

Workers try, hold and release the lock as fast as they can. The faults: *expiry*: one hold in four
is longer than the lease. *clocks*: the workers' wall clocks differ by seconds. *crash*: a worker is
sometimes killed (SIGKILL) while it holds the lock, and another one is started.

Every worker records its holds, on the clock that all processes of a machine share: from after the
acquisition to before the release, and not beyond the time until which it may believe in its lease.
So an overlap is two workers that both had every reason to believe that they were alone. At the end
of a hold that it still believes in, a worker reads the lock from the server: if it is not its own,
another process deleted or overwrote it. A lock that cannot be acquired after the end of every lease
is stuck.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from bench.processes import CONTEXT
from bench.rivals.attempts import (
    CompareAndDelete,
    Lualock,
    RedisPy,
    Rival,
    SetNx,
    SetNxPx,
    Timestamp,
)
from bench.setting import Setting, Targets

RIVALS: dict[str, type[Rival]] = {
    kind.__name__: kind for kind in (SetNx, Timestamp, SetNxPx, CompareAndDelete, RedisPy, Lualock)
}
QUICK_RIVALS = (SetNxPx.__name__, RedisPy.__name__, Lualock.__name__)
FAULTS = ("expiry", "clocks", "crash")
WORKERS = 4
TTL_S = 0.06
RUN_S, QUICK_RUN_S = 3.0, 0.5
SKEWS_S = (0.0, 3.0, -3.0, 0.5)  # of the four workers' wall clocks
LONG_SHARE, LONG_TTLS, SHORT_TTLS = 0.25, 1.6, 0.1
CRASH_SHARE = 0.02
STUCK_AFTER_TTLS = 5


TITLE = "races under faults"
WORDS = f"""\
{WORKERS} worker processes, leases of {TTL_S * 1000:.0f} ms. A double holder is a worker that
acquired while another was inside and had every reason to believe that it was alone."""
COLUMNS = (
    ("", "rival"),
    ("fault", "fault"),
    ("acquisitions", "acquisitions:,"),
    ("double holders", "double_holders"),
    ("taken from holder", "taken_from_holder"),
    ("stuck", "stuck"),
    ("crashes", "crashes"),
)


@dataclass(frozen=True)
class Hold:
    """One hold of a worker, from ``start`` to ``end``; ``taken``: the lock was not its own by
    then."""

    worker: str
    start: float
    end: float
    taken: bool = False


@dataclass(frozen=True)
class Row:
    """The results of one rival under one fault."""

    rival: str
    fault: str
    acquisitions: int
    double_holders: int
    taken_from_holder: int
    stuck: int
    crashes: int


def run(setting: Setting) -> list[Row]:
    """Race every rival under every fault: all three at once, on three locks."""
    run_s = QUICK_RUN_S if setting.quick else RUN_S
    url = setting.server.unix_url
    rows = []
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        for kind in QUICK_RIVALS if setting.quick else RIVALS:
            running = {fault: pool.submit(race, url, kind, fault, run_s) for fault in FAULTS}
            for fault, found in running.items():
                try:
                    rows.append(found.result())
                except RuntimeError as error:
                    setting.breaks(RIVALS[kind].name, f"races, {fault}", error)
    return rows


def race(url: str, kind: str, fault: str, run_s: float) -> Row:
    """Race one rival under one fault, for ``run_s`` seconds."""
    processes = CONTEXT
    key = f"race:{kind}:{fault}"
    crashes = 0
    with tempfile.TemporaryDirectory(prefix="lualock-race-", dir="/tmp") as folder:
        running = {}
        number = 0
        begin = processes.Barrier(WORKERS + 1)
        end_at = processes.Value("d", math.inf)

        def start(slot: int, barrier: object) -> None:
            nonlocal number
            number += 1
            arguments = (url, kind, key, fault, slot, number, folder, barrier, end_at)
            running[slot] = processes.Process(target=work, args=arguments)
            running[slot].start()

        for slot in range(WORKERS):
            start(slot, begin)
        begin.wait()
        end_at.value = time.monotonic() + run_s
        while running:
            for slot, process in list(running.items()):
                process.join(0.01)
                if process.exitcode is None:
                    continue
                del running[slot]
                if process.exitcode == -signal.SIGKILL:
                    crashes += 1
                    if time.monotonic() < end_at.value:
                        start(slot, None)
                elif process.exitcode != 0:
                    raise RuntimeError(f"a worker of {kind} ended with {process.exitcode}")
        holds = read(Path(folder))
    return Row(
        RIVALS[kind].name,
        fault,
        len(holds),
        double_holders(holds),
        sum(hold.taken for hold in holds),
        int(_stuck(url, kind, key)),
        crashes,
    )


def work(
    url: str,
    kind: str,
    key: str,
    fault: str,
    slot: int,
    number: int,
    folder: str,
    barrier: object,
    end_at: object,
) -> None:
    """Race until the end, or until this worker is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    skew_s = SKEWS_S[slot] if fault == "clocks" else 0.0
    rival = RIVALS[kind](url, key, TTL_S, f"worker-{number}", lambda: time.time() + skew_s)
    chance = random.Random(number)
    # Unbuffered, so that nothing is lost when the worker is killed.
    with open(Path(folder) / f"{number}.log", "wb", buffering=0) as log:
        if barrier is not None:
            barrier.wait()  # type: ignore[attr-defined]  # multiprocessing has no public type
        while time.monotonic() < end_at.value:  # type: ignore[attr-defined]  # the same
            believed = rival.take()
            if believed is None:
                time.sleep(chance.uniform(0.0005, 0.003))
                continue
            start = time.monotonic()
            log.write(f"in {start} {believed}\n".encode())
            if fault == "crash" and chance.random() < CRASH_SHARE:
                os.kill(os.getpid(), signal.SIGKILL)
            long = fault == "expiry" and chance.random() < LONG_SHARE
            time.sleep(TTL_S * (LONG_TTLS if long else SHORT_TTLS))
            end = time.monotonic()
            # It counts only if the lease was still valid when the server had answered.
            taken = end < believed and not rival.still_mine() and time.monotonic() < believed
            log.write(f"out {end} {int(taken)}\n".encode())
            rival.give()
    rival.close()
    sys.exit(0)


def read(folder: Path) -> list[Hold]:
    """Read the recorded holds. A worker that was killed inside counts as inside for a moment."""
    holds = []
    for path in folder.glob("*.log"):
        lines = [line.split() for line in path.read_text().splitlines()]
        for line, after in zip_longest(lines, lines[1:], fillvalue=["killed"]):
            if line[0] != "in":
                continue
            start, believed = float(line[1]), float(line[2])
            out = after[0] == "out"
            end = min(float(after[1]), believed) if out else start
            holds.append(Hold(path.stem, start, end, out and after[2] == "1"))
    return holds


def double_holders(holds: list[Hold]) -> int:
    """Return how many holds began while another worker was inside."""
    found = 0
    inside_until: dict[str, float] = {}
    for hold in sorted(holds, key=lambda hold: hold.start):
        others = (end for worker, end in inside_until.items() if worker != hold.worker)
        found += max(others, default=-math.inf) > hold.start
        inside_until[hold.worker] = hold.end
    return found


def _stuck(url: str, kind: str, key: str) -> bool:
    """Whether the lock cannot be acquired although no worker is left and every lease has ended."""
    rival = RIVALS[kind](url, key, TTL_S, "the judge")
    give_up = time.monotonic() + STUCK_AFTER_TTLS * TTL_S
    try:
        while rival.take() is None:
            if time.monotonic() > give_up:
                return True
            time.sleep(TTL_S / 10)
        rival.give()
        return False
    finally:
        rival.close()


def targets(rows: list[Row]) -> Targets:
    """Return the targets: lualock has no fault, and has acquisitions."""
    ours = [row for row in rows if row.rival == Lualock.name]
    claims = {
        "lualock: double holders": sum(row.double_holders for row in ours),
        "lualock: locks taken from their holder": sum(row.taken_from_holder for row in ours),
        "lualock: stuck locks": sum(row.stuck for row in ours),
    }
    idle = sum(row.acquisitions == 0 for row in ours)
    return [
        *((claim, float(number), number == 0) for claim, number in claims.items()),
        ("lualock: runs without any acquisition", float(idle), idle == 0),
    ]

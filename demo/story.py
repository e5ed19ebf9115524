"""The run: which jobs are pushed when, which worker is killed, and what is printed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import redis

import lualock
from demo.checks import problems
from demo.events import Event, EventLog, read_all
from demo.graph import repositories
from demo.jobs import UpdateNetworkGraph
from demo.worker import STREAM, in_work

T = TypeVar("T")

WORKERS = ("worker-1", "worker-2", "worker-3", "worker-4")
LIMIT_S = 20.0
CHECK_S = 0.01
LEASE_S = UpdateNetworkGraph.lock_timeout


class Story:
    """One run of the demo, in its own folder, on a server that is already started."""

    def __init__(self, folder: Path, locks: lualock.Locks, stream: redis.Redis, url: str) -> None:
        self._folder = folder
        self._locks = locks
        self._stream = stream
        self._log = EventLog(folder, "the demo")
        self._jobs = 0
        self._shown = 0
        self._names = {number: r["name"] for number, r in repositories().items()}
        self._start = time.monotonic()
        self._workers = {
            name: subprocess.Popen([sys.executable, "-m", "demo.worker", url, str(folder), name])
            for name in WORKERS
        }

    def run(self) -> bool:
        """Run all parts; return whether every check holds."""
        self._say(f"{len(WORKERS)} workers wait for jobs; a lease lasts {LEASE_S} s")
        self._many_jobs()
        self._a_slow_job()
        self._a_crash()
        self._end()
        return self._conclude()

    def close(self) -> None:
        """End all processes that still run."""
        for process in self._workers.values():
            process.kill()
            process.wait()

    def _many_jobs(self) -> None:
        self._say("")
        self._say(
            "Many jobs: some are for the same repository; only one worker rebuilds it at a time."
        )
        for repo_id in (1, 1, 1, 2, 3, 3, 4, 5, 6, 6, 8, 10, 11, 12, 12):
            self._push(repo_id, work_s=0.3)
        self._until(lambda: len(self._ended()) == self._jobs, "the jobs are done")

    def _a_slow_job(self) -> None:
        self._say("")
        self._say("A slow job: it takes longer than its lease, and another worker takes over.")
        slow = self._push(7, work_s=2 * LEASE_S)
        self._until(lambda: self._event("started", slow), "the slow job has started")
        self._until_free(7)
        self._push(7, work_s=0.2)
        self._until(lambda: self._event("expired", slow), "the slow worker gets its callback")
        self._until(lambda: len(self._ended()) == self._jobs, "both are done")

    def _a_crash(self) -> None:
        self._say("")
        self._say("A crash: a worker is killed (SIGKILL) in the middle of its job.")
        doomed = self._push(9, work_s=60)
        started = self._until(lambda: self._event("started", doomed), "the job has started")
        victim = self._workers.pop(started.process)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        killed = self._log.write("killed", 9, doomed, started.process)
        # As a job system does, put the dead worker's job back into the stream.
        self._stream.delete(in_work(started.process))
        self._push(9, work_s=0.2)
        self._until_free(9)
        freed = self._log.write("freed", 9, doomed)
        self._report()
        self._say(
            f"  the lock of the dead {started.process} was free {freed.at - killed.at:.2f} s after "
            "the kill, when its lease expired"
        )
        self._push(9, work_s=0.2)
        self._until(lambda: len(self._ended()) == self._jobs, "the job is run again")

    def _end(self) -> None:
        for _ in self._workers:
            self._stream.rpush(STREAM, json.dumps("stop"))
        for process in self._workers.values():
            process.wait(LIMIT_S)

    def _conclude(self) -> bool:
        events = read_all(self._folder)
        self._say("")
        print(_table(events))
        print()
        found = problems(events, LEASE_S, self._folder)
        found["no lock is left held"] = [
            f"the lock of {name} is held"
            for repo_id, name in self._names.items()
            if self._lock(repo_id).locked()
        ]
        found["every worker except the killed one ended with status 0"] = [
            f"{name} ended with status {process.returncode}"
            for name, process in self._workers.items()
            if process.returncode != 0
        ]
        for check, wrong in found.items():
            print(f"  {'FAILED' if wrong else 'ok':6}  {check}")
            for line in wrong:
                print(f"          {line}")
        return not any(found.values())

    def _push(self, repo_id: int, *, work_s: float) -> int:
        self._jobs += 1
        self._log.write("pushed", repo_id, self._jobs)
        job = {"repo_id": repo_id, "job": self._jobs, "work_s": work_s}
        self._stream.rpush(STREAM, json.dumps(job))
        return self._jobs

    def _lock(self, repo_id: int) -> lualock.Lock:
        return self._locks.lock(UpdateNetworkGraph.lock(repo_id, 0, 0.0))

    def _until_free(self, repo_id: int) -> None:
        self._until(lambda: not self._lock(repo_id).locked(), f"the lock of {repo_id} is free")

    def _ended(self) -> set[int]:
        over = ("finished", "refused", "killed")
        return {event.job for event in read_all(self._folder) if event.what in over}

    def _event(self, what: str, job: int) -> Event | None:
        events = read_all(self._folder)
        return next((e for e in events if e.what == what and e.job == job), None)

    def _until(self, condition: Callable[[], T | None], what: str) -> T:
        give_up = time.monotonic() + LIMIT_S
        while not (value := condition()):
            self._report()
            for name, process in self._workers.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with status {process.returncode}")
            if time.monotonic() > give_up:
                raise RuntimeError(f"not within {LIMIT_S:g} s: {what}")
            time.sleep(CHECK_S)
        self._report()
        return value

    def _report(self) -> None:
        """Print the events that were not printed yet."""
        events = [event for event in read_all(self._folder) if event.what in _WORDS]
        for event in events[self._shown :]:
            name = self._names[event.repo_id]
            words = _WORDS[event.what].format(name=name, holder=event.holder)
            print(f"{event.at - self._start:6.2f} s  {event.process:9} {words}")
        self._shown = max(self._shown, len(events))

    def _say(self, text: str) -> None:
        self._report()
        print(text, flush=True)


_WORDS = {
    "started": "rebuilds {name}",
    "finished": "has rebuilt {name}",
    "refused": "is refused {name}: {holder} has the lock",
    "expired": "learns that its lease on {name} expired before it was done",
    "killed": "kills {holder} while it rebuilds {name}",
}


def _table(events: list[Event]) -> str:
    columns = ("started", "finished", "refused", "expired", "killed")
    counted = Counter(
        (event.holder if event.what == "killed" else event.process, event.what) for event in events
    )
    rows = [[name, *(str(counted[name, what]) for what in columns)] for name in WORKERS]
    total = [str(sum(counted[name, what] for name in WORKERS)) for what in columns]
    lines = [["worker", *columns], *rows, ["all", *total]]
    return "\n".join(
        "  " + f"{line[0]:10}" + "".join(f"{cell:>10}" for cell in line[1:]) for line in lines
    )

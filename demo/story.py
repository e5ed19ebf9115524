"""The run: what is pushed when, who is killed, and what is told about it."""

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
from demo.events import Diary, Event, read_all
from demo.graph import repositories
from demo.jobs import UpdateNetworkGraph
from demo.worker import STREAM, in_work

T = TypeVar("T")

WORKERS = ("worker-1", "worker-2", "worker-3", "worker-4")
PATIENCE_S = 20.0
LOOK_S = 0.01
LEASE_S = UpdateNetworkGraph.lock_timeout


class Story:
    """One run of the demo, in a folder of its own, on a server that others have started."""

    def __init__(self, folder: Path, locks: lualock.Locks, stream: redis.Redis, url: str) -> None:
        self._folder = folder
        self._locks = locks
        self._stream = stream
        self._diary = Diary(folder, "the demo")
        self._jobs = 0
        self._told = 0
        self._names = {number: r["name"] for number, r in repositories().items()}
        self._start = time.monotonic()
        self._workers = {
            who: subprocess.Popen([sys.executable, "-m", "demo.worker", url, str(folder), who])
            for who in WORKERS
        }

    def tell(self) -> bool:
        """Run all acts; true when every check holds."""
        self._say(f"{len(WORKERS)} workers wait for jobs; a lease lasts {LEASE_S} s")
        self._many_jobs()
        self._a_slow_job()
        self._a_crash()
        self._end()
        return self._conclude()

    def close(self) -> None:
        """End whatever still runs."""
        for process in self._workers.values():
            process.kill()
            process.wait()

    def _many_jobs(self) -> None:
        self._say("")
        self._say("Many jobs: a repository comes up several times; only one worker is at it.")
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
        self._until(lambda: self._event("expired", slow), "the slow worker is told")
        self._until(lambda: len(self._ended()) == self._jobs, "both are done")

    def _a_crash(self) -> None:
        self._say("")
        self._say("A crash: a worker is killed (SIGKILL) in the middle of its job.")
        doomed = self._push(9, work_s=60)
        started = self._until(lambda: self._event("started", doomed), "the job has started")
        victim = self._workers.pop(started.who)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        killed = self._diary.write("killed", 9, doomed, started.who)
        # What a job system does: what the dead worker had taken goes back to the stream.
        self._stream.delete(in_work(started.who))
        self._push(9, work_s=0.2)
        self._until_free(9)
        freed = self._diary.write("freed", 9, doomed)
        self._report()
        self._say(
            f"  the lock of the dead {started.who} was free {freed.at - killed.at:.2f} s after the "
            "kill, on its own"
        )
        self._push(9, work_s=0.2)
        self._until(lambda: len(self._ended()) == self._jobs, "the job is run again")

    def _end(self) -> None:
        for _ in self._workers:
            self._stream.rpush(STREAM, json.dumps("stop"))
        for process in self._workers.values():
            process.wait(PATIENCE_S)

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
        found["every worker but the killed one ended well"] = [
            f"{who} ended with status {process.returncode}"
            for who, process in self._workers.items()
            if process.returncode != 0
        ]
        for check, wrong in found.items():
            print(f"  {'FAILED' if wrong else 'ok':6}  {check}")
            for line in wrong:
                print(f"          {line}")
        return not any(found.values())

    def _push(self, repo_id: int, *, work_s: float) -> int:
        self._jobs += 1
        self._diary.write("pushed", repo_id, self._jobs)
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
        give_up = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            self._report()
            for who, process in self._workers.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{who} ended with status {process.returncode}")
            if time.monotonic() > give_up:
                raise RuntimeError(f"not within {PATIENCE_S:g} s: {what}")
            time.sleep(LOOK_S)
        self._report()
        return value

    def _report(self) -> None:
        """Tell the events that were not told yet."""
        events = [event for event in read_all(self._folder) if event.what in _WORDS]
        for event in events[self._told :]:
            name = self._names[event.repo_id]
            words = _WORDS[event.what].format(name=name, holder=event.holder)
            print(f"{event.at - self._start:6.2f} s  {event.who:9} {words}")
        self._told = max(self._told, len(events))

    def _say(self, text: str) -> None:
        self._report()
        print(text, flush=True)


_WORDS = {
    "started": "rebuilds {name}",
    "finished": "is done with {name}",
    "refused": "leaves {name} alone: {holder} is at it",
    "expired": "is told that its lease of {name} ended before it was done",
    "killed": "kills {holder}, which was at {name}",
}


def _table(events: list[Event]) -> str:
    columns = ("started", "finished", "refused", "expired", "killed")
    counted = Counter(
        (event.holder if event.what == "killed" else event.who, event.what) for event in events
    )
    rows = [[who, *(str(counted[who, what]) for what in columns)] for who in WORKERS]
    total = [str(sum(counted[who, what] for who in WORKERS)) for what in columns]
    lines = [["worker", *columns], *rows, ["all", *total]]
    return "\n".join(
        "  " + f"{line[0]:10}" + "".join(f"{cell:>10}" for cell in line[1:]) for line in lines
    )

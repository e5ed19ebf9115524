"""The processes: two workers and two producers of each system, all on one server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lualock
from tests.integrations.workers import apart
from tests.integrations.workers.diary import Diary, lock_name
from tests.integrations.workers.leash import Leash
from tests.integrations.workers.producer import Order
from tests.support.servers import Server
from tests.support.waiting import wait_until

APPS = "tests.integrations.workers.apps"
# How each system starts a worker: with its own command, but for RQ, whose worker needs more
# settings than its command line has.
WORKERS = {
    "rq": f"-m {APPS}.rq",
    "celery": f"-m celery -A {APPS}.celery worker -c 2 --without-gossip --without-mingle -l INFO",
    "dramatiq": f"-m dramatiq {APPS}.dramatiq --processes 1 --threads 2",
    "huey": f"-m huey.bin.huey_consumer {APPS}.huey.huey -k process -w 2",
    "arq": f"-m arq {APPS}.arq.WorkerSettings",
    "taskiq": f"-m taskiq worker {APPS}.taskiq:broker --workers 1",
    "saq": f"-m saq {APPS}.saq.settings",
}
SYSTEMS = tuple(WORKERS)
# What else a system needs, one process of it.
BESIDE = {
    "rq": f"-m {APPS}.rq scheduler",
    "taskiq": f"-m taskiq scheduler {APPS}.taskiq:scheduler --update-interval 1",
}
# Slow machines start thirty processes slowly; nothing here takes longer than it needs.
WAIT_S = 60.0


@dataclass
class Fleet:
    """All processes, and the diary that their jobs write."""

    server: Server
    folder: Path
    workers: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)
    producers: dict[str, list[subprocess.Popen[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.diary = Diary(str(self.folder / "diary"))
        self.locks = lualock.connect(self.server.tcp_url)
        self.begun: set[str] = set()
        self._threads = ThreadPoolExecutor(len(SYSTEMS) * 2)
        self._behind: dict[str, dict[str, Future[int]]] = {}
        self._leash = Leash()
        self._leash.add(self.server.process)
        self._environment = os.environ | {
            "LUALOCK_URL": self.server.tcp_url,
            "LUALOCK_BROKER": self.server.tcp_url,
            "LUALOCK_DIARY": str(self.folder / "diary"),
            "PYTHONPATH": str(apart.ROOT),
        }

    def start(
        self, system: str, workers: int = 2, producers: int = 2, command: str | None = None
    ) -> None:
        """Start processes, without waiting until they are ready.

        :param command: starts a worker of another kind.
        """
        commands = [command or WORKERS[system]] * workers
        if system in BESIDE and system not in self.workers:
            commands.append(BESIDE[system])
        for command in commands:
            self.workers.setdefault(system, []).append(self._worker(system, command))
            self._leash.add(self.workers[system][-1])
        for _ in range(producers):
            self.producers.setdefault(system, []).append(self._producer(system))
            self._leash.add(self.producers[system][-1])

    def send(self, system: str, job: str, *args: Any, **kwargs: Any) -> Any:
        """Enqueue one job; return the outcome."""
        return self.send_each(system, Order(job, [list(args)], kwargs))[0]

    def everywhere(self, job: str, *args: Any, **kwargs: Any) -> None:
        """Enqueue a job in each system, the first time this is called, so that the systems wait
        side by side. Its first argument, the name of the system, is added."""
        if job not in self.begun:
            self.begun.add(job)
            for system in SYSTEMS:
                self.send(system, job, system, *args, **kwargs)

    def send_each(self, system: str, order: Order) -> list[Any]:
        """Enqueue many jobs, shared out among the producers, which work side by side."""
        producers = self.producers[system][: len(order.each)]
        for number, producer in enumerate(producers):
            mine = Order(**(asdict(order) | {"each": order.each[number :: len(producers)]}))
            assert producer.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it says nothing then, either
                producer.stdin.write(json.dumps(asdict(mine)) + "\n")
                producer.stdin.flush()
        answers: list[Any] = []
        for producer in producers:
            assert producer.stdout is not None
            line = producer.stdout.readline()
            assert line, f"a producer of {system} died:\n{self.said(system)}"
            answers += json.loads(line)
        return answers

    def until(self, condition: Any, system: str, what: str) -> None:
        """Return once a condition is true; if it does not come true, show the workers' output."""

        def fulfilled() -> Any:
            for worker in self.workers.get(system, []):
                assert worker.poll() is None, (
                    f"a worker of {system} died while we waited for {what}"
                )
            return condition()

        try:
            wait_until(fulfilled, wait_s=WAIT_S, what=what)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.said(system)}") from None

    def until_count(self, job: str, system: str, count: int, *events: str) -> None:
        """Return once a system's job has recorded that many events."""
        self.until(
            lambda: self.diary.count(job, system, *events) >= count,
            system,
            f"{count} x {events} of {job} in {system}",
        )

    def behind(self, job: str) -> dict[str, Future[int]]:
        """Enqueue a job in each system, the first time this is called, and wait for its lock from
        the start of its first run on; return how many of its runs had ended by then."""

        def wait(system: str) -> int:
            self.until_count(job, system, 1, "start")
            with self.free(system, job):
                return self.diary.count(job, system, "end")

        if job not in self._behind:
            self.everywhere(job)
            self._behind[job] = {each: self._threads.submit(wait, each) for each in SYSTEMS}
        return self._behind[job]

    def free(self, system: str, job: str) -> Any:
        """Return the lock of a system's job once it is free, after all that wait for it now."""
        return self.lock(system, job).acquire(timeout=WAIT_S)

    def lock(self, system: str, job: str) -> lualock.Lock:
        """The lock of a system's job."""
        return self.locks.lock(lock_name(job, system))

    def kill(self, system: str, pid: int) -> None:
        """Kill by SIGKILL the worker that runs a job in this process, and all that it started."""
        session = os.getsid(pid)
        for worker in self.workers[system]:
            if worker.pid == session:
                self._leash.end(worker)
                self.workers[system].remove(worker)
                return
        raise AssertionError(f"no worker of {system} has the process {pid}")

    def said(self, system: str) -> str:
        """Return the end of the output of a system's processes."""
        logs = sorted(self.folder.glob(f"{system}-*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text('utf-8')[-2000:]}" for log in logs)

    def close(self) -> None:
        self._leash.__exit__()
        self._threads.shutdown()
        self.locks.close()
        self.diary.close()

    def _worker(self, system: str, command: str) -> subprocess.Popen[bytes]:
        with self._log(system, "worker") as log:
            return subprocess.Popen(
                [_python(system), *command.split()],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that whatever it forks is found again
            )

    def _producer(self, system: str) -> subprocess.Popen[str]:
        with self._log(system, "producer") as log:
            return subprocess.Popen(
                [_python(system), "-m", "tests.integrations.workers.producer", system],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def _log(self, system: str, kind: str) -> Any:
        number = len(list(self.folder.glob(f"{system}-{kind}-*.log")))
        return open(self.folder / f"{system}-{kind}-{number}.log", "wb")


def _python(system: str) -> str:
    return str(apart.python()) if system in apart.SYSTEMS else sys.executable

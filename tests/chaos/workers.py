"""The worker processes of a round: start, pause, resume and kill them, always by their handle."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random

from lualock._core.clock import now
from tests.chaos.event_log import EventLog
from tests.chaos.worker import KINDS, Task


@dataclass
class Workers:
    """Worker processes, by the names of their event logs."""

    folder: Path
    log: EventLog
    urls: tuple[str, ...]  # of one server
    task: Task  # of all workers; name, url and kind differ
    chance: Random
    kinds: Sequence[str] = KINDS
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)  # since when
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Start one more, of each kind in turn."""
        number = next(self._numbers)
        name = f"w{number}"
        task = replace(
            self.task,
            name=name,
            url=self.urls[number // len(self.kinds) % len(self.urls)],
            workers=self.chance.choice((1, 2, 3)),
            kind=self.kinds[number % len(self.kinds)],
        )
        module = f"tests.chaos.{'gevent_worker' if task.kind == 'gevent' else 'worker'}"
        command = [sys.executable, "-W", "error::ResourceWarning", "-m", module]
        with self._error_file(name).open("wb") as errors:
            self.processes[name] = subprocess.Popen(
                [*command, json.dumps(asdict(task))],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=subprocess.STDOUT,
            )

    def running(self) -> list[str]:
        """Return the workers that are not paused."""
        return [name for name in self.processes if name not in self.stopped]

    def kill(self, name: str) -> None:
        """Kill a worker (SIGKILL), and record when it surely is dead."""
        process = self.processes.pop(name)
        self._check(name, process.poll())
        process.kill()
        process.wait()
        self.log.record("gone", process=name)
        self._end_of_pause(name)

    def stop(self, name: str) -> None:
        """Pause a worker (SIGSTOP)."""
        self.stopped[name] = now()
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Resume a worker (SIGCONT)."""
        self.processes[name].send_signal(signal.SIGCONT)
        self._end_of_pause(name)

    def _end_of_pause(self, name: str) -> None:
        if (since := self.stopped.pop(name, None)) is not None:
            self.log.record("cause", since, what="pause", process=name, until=now())

    def resume_all(self) -> None:
        for name in list(self.stopped):
            self.resume(name)

    def finished(self) -> bool:
        """Whether all workers have ended; note the errors of those that have."""
        for name, process in list(self.processes.items()):
            if (code := process.poll()) is not None:
                del self.processes[name]
                self._check(name, code)
        return not self.processes

    def _check(self, name: str, code: int | None) -> None:
        """Note the error if a worker failed or printed a traceback."""
        output = self._error_file(name).read_bytes()
        if code or b"Traceback" in output:
            last = output.decode(errors="replace").strip().rpartition("\n")[2]
            self.failures.append(f"{name} failed (exit status {code}): {last}")

    def end(self) -> None:
        """End the workers that are left; each first prints its stack."""
        for name, process in self.processes.items():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGUSR1)
                self.failures.append(f"{name} had not finished; {name}.err has its stack")
                try:
                    process.wait(0.5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            self._check(name, None)
        self.processes.clear()
        self.stopped.clear()

    def _error_file(self, name: str) -> Path:
        return self.folder / f"{name}.err"

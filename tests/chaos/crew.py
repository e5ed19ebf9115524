"""The worker processes of a run: started, stopped, continued and killed, always by their handle."""

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
from tests.chaos.diary import Diary
from tests.chaos.worker import KINDS, Task


@dataclass
class Crew:
    """Processes, by the name under which they write."""

    folder: Path
    diary: Diary
    urls: tuple[str, ...]  # of one server
    task: Task  # what all of them do; who, url and the kind are each one's own
    chance: Random
    kinds: Sequence[str] = KINDS
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)  # since when
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """One more, of each kind in turn."""
        number = next(self._numbers)
        who = f"w{number}"
        task = replace(
            self.task,
            who=who,
            url=self.urls[number // len(self.kinds) % len(self.urls)],
            workers=self.chance.choice((1, 2, 3)),
            kind=self.kinds[number % len(self.kinds)],
        )
        module = f"tests.chaos.{'gevent_worker' if task.kind == 'gevent' else 'worker'}"
        command = [sys.executable, "-W", "error::ResourceWarning", "-m", module]
        with self._complaints(who).open("wb") as complaints:
            self.processes[who] = subprocess.Popen(
                [*command, json.dumps(asdict(task))],
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=subprocess.STDOUT,
            )

    def running(self) -> list[str]:
        """Those that are not stopped."""
        return [who for who in self.processes if who not in self.stopped]

    def kill(self, who: str) -> None:
        """SIGKILL. From when it surely is dead, it has nothing any more."""
        process = self.processes.pop(who)
        self._look(who, process.poll())
        process.kill()
        process.wait()
        self.diary.tell("gone", who=who)
        self._end_of_pause(who)

    def stop(self, who: str) -> None:
        """SIGSTOP."""
        self.stopped[who] = now()
        self.processes[who].send_signal(signal.SIGSTOP)

    def carry_on(self, who: str) -> None:
        """SIGCONT."""
        self.processes[who].send_signal(signal.SIGCONT)
        self._end_of_pause(who)

    def _end_of_pause(self, who: str) -> None:
        if (since := self.stopped.pop(who, None)) is not None:
            self.diary.tell("cause", since, what="pause", who=who, until=now())

    def carry_on_all(self) -> None:
        for who in list(self.stopped):
            self.carry_on(who)

    def finished(self) -> bool:
        """Whether all have ended by themselves; what was wrong with those that have is noted."""
        for who, process in list(self.processes.items()):
            if (code := process.poll()) is not None:
                del self.processes[who]
                self._look(who, code)
        return not self.processes

    def _look(self, who: str, code: int | None) -> None:
        """Whether it failed, or said of something that it went wrong."""
        said = self._complaints(who).read_bytes()
        if code or b"Traceback" in said:
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            self.wrong.append(f"{who} failed (exit status {code}): {last}")

    def end(self) -> None:
        """End those that are left; each says where it is first."""
        for who, process in self.processes.items():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGUSR1)
                self.wrong.append(f"{who} had not finished; {who}.err says where it was")
                try:
                    process.wait(0.5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            self._look(who, None)
        self.processes.clear()
        self.stopped.clear()

    def _complaints(self, who: str) -> Path:
        return self.folder / f"{who}.err"

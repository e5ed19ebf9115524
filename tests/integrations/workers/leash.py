"""Ends what a test started when the test's own process is gone, whatever ended that.

``python -m tests.integrations.workers.leash`` reads the ids of processes, a line each, that lead a
session. When there is nothing more to read, for the only writer is gone, it kills these sessions:
whatever the processes forked too, and put into groups of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Leash:
    """What is on it does not outlive this process, however that ends, nor the ``with``."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[Any]] = []
        self._watcher = subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.workers.leash"],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Leash:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            self.end(process)
        self.end(self._watcher)

    def add(self, process: subprocess.Popen[Any] | None) -> None:
        """A process that leads a session, or is alone."""
        assert process is not None
        assert self._watcher.stdin is not None
        self._processes.append(process)
        self._watcher.stdin.write(f"{process.pid}\n")
        self._watcher.stdin.flush()

    def end(self, process: subprocess.Popen[Any]) -> None:
        """Kill a process now, with all of its session."""
        if process.returncode is None:
            kill_session(process.pid)
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def kill_session(leader: int) -> None:
    """SIGKILL to a process and all of its session."""
    for pid in [leader, *_session(leader)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _session(leader: int) -> list[int]:
    """The processes of a session, where there is a /proc to look them up."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(entry.name)) == leader:
                found.append(int(entry.name))
    return found


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the test
    leaders = [int(line) for line in sys.stdin]
    for leader in leaders:
        kill_session(leader)


if __name__ == "__main__":
    main()

"""Ends what a test started when the test's own process is gone, whatever ended that process.

``python -m tests.integrations.workers.leash`` reads the ids of processes, a line each, that lead a
session. When its input ends, because the only writer is gone, it kills these sessions, with all
that the processes forked and put into groups of their own.
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
    """The processes on a leash do not outlive this process, however it ends, nor the ``with``."""

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
        """Add a process that leads a session, or is alone."""
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
    """Send SIGKILL to a process and all of its session."""
    for pid in [leader, *_session(leader)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _session(leader: int) -> list[int]:
    """Return the processes of a session, on a system with a /proc."""
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

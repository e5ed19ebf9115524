"""The diary: what jobs record while they run, and what the tests read; a file with an event in each
line.

Every process appends to the same file, one ``write`` a line, which the kernel does not mix. Times
are on the system's monotonic clock, which is the same for all processes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Entry:
    """Something that happened to a job."""

    event: str
    job: str
    args: list[Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    pid: int = field(default_factory=os.getpid)
    at: float = field(default_factory=time.monotonic)
    fence: int = 0

    @property
    def values(self) -> list[Any]:
        """Return the arguments, passed by position or, as always in SAQ, by name."""
        return [*self.args, *self.kwargs.values()]


class Diary:
    """The file, for the processes that write and for the tests that read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._reading = threading.Lock()
        self._read: list[Entry] = []
        self._offset = 0

    def close(self) -> None:
        os.close(self._fd)

    def write(self, event: str, job: str, *args: Any, fence: int = 0, **kwargs: Any) -> None:
        entry = Entry(event, job, list(args), kwargs, fence=fence)
        os.write(self._fd, (json.dumps(asdict(entry)) + "\n").encode())

    def entries(self, job: str = "", where: str = "", *events: str) -> list[Entry]:
        """Return the entries of a job, of a system (its first argument), and of some events."""
        with self._reading, open(self._path, "rb") as file:
            file.seek(self._offset)
            # Read once: a loop over the file may meet the rest of a line whose begin it has passed.
            whole, newline, _ = file.read().rpartition(b"\n")
            self._read += [Entry(**json.loads(line)) for line in whole.splitlines()]
            self._offset += len(whole + newline)
        return [
            entry
            for entry in self._read
            if (not job or entry.job == job)
            and (not where or entry.values[:1] == [where])
            and (not events or entry.event in events)
        ]

    def count(self, job: str, where: str, *events: str) -> int:
        return len(self.entries(job, where, *events))


def overlaps(entries: list[Entry]) -> list[tuple[Entry, Entry]]:
    """Return the runs, in any process, that began while another had begun and not ended."""
    found: list[tuple[Entry, Entry]] = []
    running: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: entry.at):
        if entry.event == "start":
            found += [(other, entry) for other in running]
            running.append(entry)
        elif entry.event == "end":
            mine = [run for run in running if (run.pid, run.values) == (entry.pid, entry.values)]
            running.remove(mine[0])
    return found


def lock_name(job: str, where: str) -> str:
    """Return the name of a job's lock, for the jobs and for the tests."""
    return f"{job}:{where}"

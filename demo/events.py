"""The events of a run, recorded by each process: one file a process, one line an event."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """``at`` is CLOCK_MONOTONIC in seconds, which all processes of a machine share.

    ``what`` is one of pushed, started, finished, refused, expired, killed, freed. ``job`` numbers
    the pushes; ``holder`` had the lock when a job was refused.
    """

    at: float
    process: str
    what: str
    repo_id: int
    job: int
    holder: str = ""


class EventLog:
    """Appends events to the file of one process."""

    def __init__(self, folder: Path, process: str) -> None:
        self.process = process
        self._path = folder / f"{process}.jsonl"

    def write(self, what: str, repo_id: int, job: int, holder: str = "") -> Event:
        """Record an event of this moment."""
        event = Event(time.monotonic(), self.process, what, repo_id, job, holder)
        # One short write: whole even if this process is killed next.
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(event)) + "\n")
        return event


def read_all(folder: Path) -> list[Event]:
    """Return the events of all processes, in the order of time."""
    # Only whole lines: a process may be writing its last one.
    texts = [path.read_text().rpartition("\n")[0] for path in folder.glob("*.jsonl")]
    lines = [line for text in texts for line in text.splitlines()]
    return sorted((Event(**json.loads(line)) for line in lines), key=lambda event: event.at)

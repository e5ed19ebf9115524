"""What happened, written down by who did it: one file a process, one line an event."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """``at`` is CLOCK_MONOTONIC in seconds, which all processes of a machine share.

    ``what`` is one of pushed, started, finished, refused, expired, killed, freed. ``job`` numbers
    the pushes; ``holder`` is who had the lock when a job was refused.
    """

    at: float
    who: str
    what: str
    repo_id: int
    job: int
    holder: str = ""


class Diary:
    """Appends events to a file of one's own."""

    def __init__(self, folder: Path, who: str) -> None:
        self.who = who
        self._path = folder / f"{who}.jsonl"

    def write(self, what: str, repo_id: int, job: int, holder: str = "") -> Event:
        """Note that this has just happened."""
        event = Event(time.monotonic(), self.who, what, repo_id, job, holder)
        with self._path.open("a") as file:  # one short write: whole even if we are killed next
            file.write(json.dumps(asdict(event)) + "\n")
        return event


def read_all(folder: Path) -> list[Event]:
    """Everybody's events in the order of time."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted((Event(**json.loads(line)) for line in lines), key=lambda event: event.at)

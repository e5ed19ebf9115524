"""The event log of a process that may be killed at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lualock._core.clock import now
from tests.simulation.checker import Event, read

SUFFIX = ".jsonl"


class EventLog:
    """The events of one process, in a file of its own.

    Each event is one write to the end of the file, so it is there whole or not at all, and the
    process need not be alive when the file is read.
    """

    def __init__(self, folder: Path, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(folder / (name + SUFFIX), flags, 0o600)
        self.name = name

    def record(self, kind: str, t: float | None = None, **fields: Any) -> None:
        """Record an event at ``t`` (default: now)."""
        event = Event(now() if t is None else t, kind, **fields)
        os.write(self._file, event.line().encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_all(folder: Path) -> Iterator[Event]:
    """Read the events of all logs."""
    for path in sorted(folder.glob("*" + SUFFIX)):
        with path.open() as file:
            yield from read(file)

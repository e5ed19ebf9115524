"""What a process writes down of what it does. It may be killed at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lualock._core.clock import now
from tests.simulation.checker import Event, read

SUFFIX = ".jsonl"


class Diary:
    """The events of one process, in a file of its own.

    Each is one write to the end of the file, so it is there whole or not at all, and whoever writes
    it need not be alive when it is read.
    """

    def __init__(self, folder: Path, who: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(folder / (who + SUFFIX), flags, 0o600)
        self.who = who

    def tell(self, kind: str, t: float | None = None, **fields: Any) -> None:
        """Write down what happened, at ``t`` (default: now)."""
        event = Event(now() if t is None else t, kind, **fields)
        os.write(self._file, event.line().encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_all(folder: Path) -> Iterator[Event]:
    """The events of all diaries."""
    for path in sorted(folder.glob("*" + SUFFIX)):
        with path.open() as file:
            yield from read(file)

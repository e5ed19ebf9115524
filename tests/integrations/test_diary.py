"""Test the diary itself: its reader meets lines that are not written to their end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tests.integrations.workers.diary import Diary

LINES = 2_000


def test_a_line_that_grows_while_it_is_read(tmp_path: Path) -> None:
    """A line whose writer is not done is read when it is whole, and never in two parts."""
    diary = Diary(str(tmp_path / "diary"))
    line = b'{"event": "start", "job": "build", "args": [1]}\n'

    def write() -> None:
        for _ in range(LINES):
            os.write(diary._fd, line[:-1])
            os.write(diary._fd, line[-1:])

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        diary.entries()
    writer.join()
    assert diary.count("build", "", "start") == LINES
    diary.close()

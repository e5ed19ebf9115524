"""Ends what a test started when the test's own process is gone, whatever ended that.

``python -m tests.workers.leash`` reads the ids of processes, a line each, that lead a session. When
there is nothing more to read, for the only writer is gone, it kills these sessions: whatever the
processes forked too, and put into groups of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path


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

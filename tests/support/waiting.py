"""Wait on conditions instead of bare sleeps; make threads fail to start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest


def wait_until(condition: Callable[[], object], *, wait_s: float = 5, what: str = "") -> None:
    """Return once ``condition()`` is true; fail after ``wait_s`` seconds."""
    give_up = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {wait_s} s: {what or condition}"
        time.sleep(0.002)


def threads_fail(monkeypatch: pytest.MonkeyPatch, name: str, times: int = 2) -> list[str]:
    """Let the next threads of that name fail to start, as at a limit of the system.

    Returns a list, which gets the names of the threads that failed.
    """
    failed: list[str] = []
    start = threading.Thread.start

    def start_or_fail(thread: threading.Thread) -> None:
        if thread.name == name and len(failed) < times:
            failed.append(name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    return failed

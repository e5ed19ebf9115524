"""Waiting on conditions, for tests: never a bare sleep."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], *, wait_s: float = 5, what: str = "") -> None:
    """Return once ``condition()`` is true; fail when it is not within ``wait_s`` seconds."""
    give_up = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {wait_s} s: {what or condition}"
        time.sleep(0.002)

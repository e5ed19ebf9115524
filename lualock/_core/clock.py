"""Layer 0: the local clock that leases are timed by.

A lease runs out on the server while this machine sleeps, so the clock must run during suspend:
CLOCK_BOOTTIME where the system has one (Linux), CLOCK_MONOTONIC_RAW's cousin elsewhere.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

now: Callable[[], float]
"""Seconds since boot, counting the time the machine was suspended."""

if hasattr(time, "CLOCK_BOOTTIME"):
    now = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:  # pragma: no cover - macOS: its monotonic clock stops during sleep; there is no better one
    now = time.monotonic

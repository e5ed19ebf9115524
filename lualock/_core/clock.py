"""Provide the local clock by which leases are timed.

A lease expires on the server while this machine sleeps, so the clock must run during suspend:
CLOCK_BOOTTIME if the system has it (Linux), the monotonic clock elsewhere.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

now: Callable[[], float]
"""Seconds since boot, counting the time the machine was suspended."""

MAX_TIMER_S = 86_400.0
"""The longest time of an event loop's timer: a wait without an end wakes up once a day."""

if hasattr(time, "CLOCK_BOOTTIME"):
    now = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:  # pragma: no cover - macOS: the monotonic clock stops during sleep; no better one exists
    now = time.monotonic

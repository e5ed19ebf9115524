"""Decide when a waiter checks the queue on its own: a pure function of what the waiter knows.

A message tells a waiter that it has the lock, or that it is first. A message can be lost, and the
waiter that should react to it can die. So every waiter also checks: when the lease of the holder
ends, but within two limits that grow with its place, because there may be many waiters. The first
one also checks every other second, in case an operator deleted the key.

``python -m tests.simulation schedule`` measures what each rule pays. Beside each constant stands a
figure with and without it.
"""

from __future__ import annotations

import math

CLAIM_MS = 2500
"""How long a waiter that was granted the lock has to claim it; also in Lua. Without it a waiter
that died unnoticed keeps the lock for 30 s instead of 2.5 s."""

CHECK_LATE_S = 0.005
"""How long after the end of a lease a waiter checks. Without it the check is too early, and the
next waiter of a dead one has the lock 0.36 s after the end instead of 0.005 s."""

CHECK_HEAD_S = 2.0
"""The longest time between two checks of the first waiter. Without it a lone waiter for a lock
whose key was deleted by hand, or whose message was lost, has the lock after 13 s instead of 0.8 s,
by the longest time of all waiters. It costs a lock with waiters half a script a second."""

CHECK_LEAST_S = 0.5
"""The least time between two checks, for each waiter ahead. Without it 100 waiters behind a lease
of 1 s send 115 checks a second instead of 11."""

CHECK_MOST_S = 5.0
"""The most time between two checks, for each waiter ahead. Without it a lock whose key was deleted,
and whose first waiter is dead, unnoticed, stands still for 26 s instead of 5.4 s."""

CHECK_MAX_S = 60.0
"""The longest time between two checks of a waiter; the queue's key lives three times as long.
Without it a lock whose key was deleted, and whose first 20 waiters are dead, unnoticed, stands
still for 189 s instead of 140 s."""

CHECK_GROUPS = 16
"""How many seconds the checks of waiters that came together are spread over. Without it 1,000
waiters send 886 of their checks within 0.1 s instead of 106."""

YOUNG_S = 0.08
"""After how long a new waiter checks once more, for in its first 60 ms (``YOUNG_TICKS`` in Lua) it
gets no message that it has become first. Without this check it has the lock of a holder that died
early 4.0 s late instead of 0.005 s; without both, a lock that is held for 1 ms at a time costs 2.0
messages and 4.0 scripts an acquisition instead of 1.0 and 3.0."""


def next_check_s(ahead: int, lease_left_s: float | None, young_left_s: float) -> float:
    """Return after how long without a message a waiter checks the queue.

    :param ahead: how many waiters are in front of it.
    :param lease_left_s: what is left of the holder's lease; ``None``: the lease has no end.
    :param young_left_s: for how long the waiter is still young; see ``YOUNG_S``.
    """
    wait_s = math.inf if lease_left_s is None else max(0.0, lease_left_s) + CHECK_LATE_S
    if ahead == 0:
        wait_s = min(wait_s, CHECK_HEAD_S)
    else:
        wait_s = min(max(wait_s, CHECK_LEAST_S * ahead), CHECK_MOST_S * ahead)
    if young_left_s > 0:
        # Even if this waiter is first: one with a higher priority may have come and gone.
        wait_s = min(wait_s, young_left_s)
    return min(wait_s, CHECK_MAX_S - ahead % CHECK_GROUPS)

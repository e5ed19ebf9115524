"""Decide when a waiter checks the queue on its own: a pure function of what the waiter knows.

A message tells a waiter that it has the lock, or that it is first. A message can be lost, and the
waiter that should react to it can die. So every waiter also checks: the first ones when the lease
of the holder ends, the others the more rarely the further back they are, because there may be many.
"""

from __future__ import annotations

CLAIM_MS = 2500
"""How long a waiter that was granted the lock has to claim it; also in Lua."""

CHECK_MAX_S = 60.0
"""The longest time between two checks of a waiter; the queue's key lives three times as long."""

CHECK_AT_END, CHECK_LEAST_S, CHECK_BEHIND_S = 8, 1.0, 0.5
"""The first CHECK_AT_END waiters check when the lease ends: two of them always, the others at most
every CHECK_LEAST_S. Those behind check at most every CHECK_BEHIND_S times the waiters ahead."""

CHECK_LATE_S = 0.005
"""How long after the end of a lease the next waiter checks, so that it is not too early."""

YOUNG_S = 0.08
"""After how long a new waiter checks once more. In its first 60 ms (in Lua) it gets no message that
it has become first."""


def next_check_s(ahead: int, lease_left_s: float | None, young_left_s: float) -> float:
    """Return after how long without a message a waiter checks the queue.

    :param ahead: how many waiters are in front of it.
    :param lease_left_s: what is left of the holder's lease; ``None``: the lease has no end.
    :param young_left_s: for how long the waiter is still young; see ``YOUNG_S``.
    """
    wait_s = CHECK_MAX_S
    if lease_left_s is not None:
        # When the lease expires it is the first waiter's turn, then the second's. Waiters ahead may
        # have died with the holder; a check skips dead ones.
        wait_s = max(0.0, lease_left_s) + CHECK_LATE_S * (ahead + 1)
        if ahead > 1:
            near = ahead < CHECK_AT_END
            wait_s = max(wait_s, CHECK_LEAST_S if near else CHECK_BEHIND_S * ahead)
    if ahead > 0:
        # The message that this waiter is first may be lost, or the waiter ahead may be dead.
        wait_s = min(wait_s, CLAIM_MS / 1000 * 2 ** min(max(1, ahead - 1), 8))
    if young_left_s > 0:
        # Even if this waiter is first: one with a higher priority may have come and gone.
        wait_s = min(wait_s, young_left_s)
    # Spread the checks of waiters that came together.
    return min(wait_s, CHECK_MAX_S * (1 - ahead % 8 / 32))

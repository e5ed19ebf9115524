"""Estimate the server's clock from the local one.

A driver stamps each request that has a deadline when it sends it (:meth:`ServerClock.stamp`).
"""

from __future__ import annotations

import math
from typing import Any

from lualock._protocol.effects import MIN_REQUEST_S, Clock, RunScript
from lualock.errors import LockUnavailable

DRIFT = 1e-3
"""By how much two clocks may drift apart, as a share of the time since they were compared: twice
the rate at which NTP slews."""

FRESH_S = 30.0
"""A comparison older than this is repeated when that costs nothing."""

LATE_MAX = 3
"""How often a request may be late on a server whose clock was compared just before."""

KEPT_S = 0.05
"""How long one encoded deadline is reused: encoding costs more than exactness gains."""


class ServerClock:
    """An estimate of the server's time.

    It serves two purposes. A request carries the server's time at which its caller stops waiting,
    so that an *orphaned request* (still in flight after its caller gave up) is refused when it
    arrives late. And a message that gives a lock says when it was given, so that its receiver knows
    for how long it certainly has the lock, however late the message arrives.

    The clocks are compared once for each connection. The server answers between the sending of a
    request and the arrival of its reply, so the difference is known as an interval, and all results
    err on the safe side.

    :param clock: the driver's clock.
    :param reply_s: how long the driver waits for a reply where the caller sets no limit.
    """

    __slots__ = (
        *("_compared", "_least_us", "_most_us", "_usual"),
        *("clock", "reply_s", "stale_at"),
    )

    stale_at: float
    """The time from which on they should be compared again."""

    def __init__(self, clock: Clock, reply_s: float) -> None:
        self.clock = clock
        self.reply_s = reply_s
        self.stale_at = self._compared = -math.inf
        self._least_us = self._most_us = 0.0
        self._usual = -math.inf, b""

    def compare(self, sent: float, received: float, server_us: int) -> None:
        """Compare the clocks: the server answered between ``sent`` and ``received``."""
        self._least_us = server_us - received * 1e6
        self._most_us = server_us - sent * 1e6
        self._compared = received
        self.stale_at = received + FRESH_S
        self._usual = -math.inf, b""

    def refine(self, sent: float, received: float, server_us: int) -> None:
        """Compare the clocks if the result is more exact than the present one."""
        drift_s = (received - self._compared) * DRIFT
        if received - sent < (self._most_us - self._least_us) / 1e6 + 2 * drift_s:
            self.compare(sent, received, server_us)

    def stamp(self, call: RunScript) -> None:
        """Write its deadline into a call that is sent now: when its caller stops waiting for the
        reply. Note both times on the call."""
        call.sent_at = now = self.clock()
        until = call.until
        call.expires, deadline = self._usual
        if now + self.reply_s - call.expires > KEPT_S:
            call.expires = now + self.reply_s
            deadline = self.deadline(call.expires, now)
            self._usual = call.expires, deadline
        if until is not None and until < call.expires:
            call.expires = max(until, now + MIN_REQUEST_S)
            deadline = self.deadline(call.expires, now)
        script = call.script
        parts: Any = call.parts
        parts[script.deadline_at] = deadline
        if script.sent_us_at is not None:
            parts[script.sent_us_at] = self.deadline(now, now)

    def deadline(self, until: float, now: float) -> bytes:
        """Return the latest server time that is certainly not after ``until``; 16 digits."""
        drift_us = (now - self._compared) * DRIFT * 1e6
        return b"%016d" % (until * 1e6 + self._least_us - drift_us)

    def at_earliest(self, server_us: int, now: float) -> float | None:
        """Return a local time that is certainly not after ``server_us``.

        ``None``: the result is in the future, so one of the clocks has stepped.
        """
        drift_s = (now - self._compared) * DRIFT
        then = (server_us - self._most_us) / 1e6 - drift_s
        return then if then <= now else None


def jumps() -> LockUnavailable:
    """Make the error for requests that are late however well the clocks were compared."""
    return LockUnavailable(
        "could not use the server: it rejected several requests in a row as expired, so its clock "
        "is unstable. Check its time synchronisation (NTP)"
    )

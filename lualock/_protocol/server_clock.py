"""How far the server's clock is from ours. No clock of its own: it is told what others read."""

from __future__ import annotations

import math

from lualock._protocol.effects import Clock
from lualock.errors import LockUnavailable

DRIFT = 1e-3
"""By how much two clocks may run apart, as a share of the time since they were compared: twice
what NTP slews by."""

FRESH_S = 30.0
"""A comparison older than this is made anew where it costs nothing."""

LATE_MAX = 3
"""How often a request may be found late on a server whose clock was compared just before."""

KEPT_S = 0.05
"""For how long one deadline serves: making one costs more than what it gains to be exact."""


class ServerClock:
    """What is known of the server's time.

    Two things need it. A request is given the server's time at which its caller stops waiting for
    it, so that one which lingers on the way is refused when it arrives (a *orphan*: a lock taken
    for nobody). And a message that gives a lock says when that was, so that its receiver knows how
    long it is certain to have it, however late the message came.

    Compared once for each connection; the answer was made between the sending of a request and the
    receiving of its reply, so the difference is known as an interval, and what is derived from it
    errs on the safe side.

    :param clock: the driver's clock.
    :param reply_s: how long the driver waits for a reply where the caller sets no limit.
    """

    __slots__ = (
        *("_compared", "_least_us", "_most_us", "_usual"),
        *("clock", "known", "reply_s", "stale_at"),
    )

    known: bool
    """Whether the clocks have been compared at all."""

    stale_at: float
    """When they were compared so long ago that it should be done again."""

    def __init__(self, clock: Clock, reply_s: float) -> None:
        self.clock = clock
        self.reply_s = reply_s
        self.known = False
        self.stale_at = self._compared = -math.inf
        self._least_us = self._most_us = 0.0
        self._usual = -math.inf, b""

    def compare(self, sent: float, received: float, server_us: int) -> None:
        """Learn from a reply what the server's time was between ``sent`` and ``received``."""
        self._least_us = server_us - received * 1e6
        self._most_us = server_us - sent * 1e6
        self._compared = received
        self.stale_at = received + FRESH_S
        self._usual = -math.inf, b""
        self.known = True  # last, for other threads

    def refine(self, sent: float, received: float, server_us: int) -> None:
        """Learn from it only if it tells more than what is known."""
        drift_s = (received - self._compared) * DRIFT
        if received - sent < (self._most_us - self._least_us) / 1e6 + 2 * drift_s:
            self.compare(sent, received, server_us)

    def usual(self, now: float) -> tuple[float, bytes]:
        """When a request without a limit of its own expires that is sent now, and its deadline."""
        expires = now + self.reply_s
        usual = self._usual
        if expires - usual[0] > KEPT_S:
            self._usual = usual = expires, self.deadline(expires, now)
        return usual

    def deadline(self, until: float, now: float) -> bytes:
        """The latest time of the server's that is certainly not after ``until``; 16 digits."""
        drift_us = (now - self._compared) * DRIFT * 1e6
        return b"%016d" % (until * 1e6 + self._least_us - drift_us)

    def passed(self, server_us: int, now: float) -> float | None:
        """Our time that was certainly not after ``server_us``; ``None`` where that cannot be told:
        it would be in the future, so one of the clocks has stepped."""
        drift_s = (now - self._compared) * DRIFT
        then = (server_us - self._most_us) / 1e6 - drift_s
        return then if then <= now else None


def jumps() -> LockUnavailable:
    """The error for requests that are late however well the clocks were compared."""
    return LockUnavailable(
        "could not use the server: it rejected several requests in a row as expired, so its clock "
        "is unstable. Check its time synchronisation (NTP)"
    )

"""Keep book of what the server may still execute for one token."""

from __future__ import annotations

import math

from lualock._protocol.effects import RunScript


class InFlight:
    """The requests of one token that may still be in flight.

    Class attributes, because most acquisitions have one request, which is answered.
    """

    in_flight: RunScript | None = None
    """The last request, unless its outcome is known."""

    orphan: RunScript | None = None
    """The latest of those that may arrive at any time until they expire. One cleanup, after it has
    expired, serves all."""

    def mark_lost(self) -> None:
        """Note that the request in flight has become an orphan."""
        lost, self.in_flight = self.in_flight, None
        if lost is not None and lost.expires < math.inf:  # it was sent
            if self.orphan is not None:
                lost.via = None  # it stands for both, whatever their connections
            self.orphan = lost

    def mark_answered(self) -> None:
        """Note the answer to the request in flight; a copy of it may still be in flight."""
        if self.in_flight is not None and self.in_flight.doubled:
            self.mark_lost()
        self.in_flight = None

    def possible_orphan(self) -> RunScript | None:
        """Return the last request that may still be in flight without an answer."""
        self.mark_lost()
        return self.orphan

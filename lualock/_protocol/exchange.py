"""Send a request that has a deadline until the server has answered it, and keep book of what may
still be in flight.

A request whose reply was lost is sent once more, on a fresh connection. One that the server rejects
as late is sent again after the clocks have been compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lualock._protocol.effects import RunScript, Steps
from lualock._protocol.in_flight import InFlight
from lualock._protocol.resend import still_unknown
from lualock._protocol.server_clock import LATE_MAX, ServerClock, jumps
from lualock.errors import LockError, LockUnavailable
from lualock.scripts import Script


class Exchange(InFlight):
    """One request and its answer."""

    sent_at: float
    """When the request that was answered was sent."""

    unknown: LockUnavailable | None = None
    """The error of the copy whose reply was lost."""

    def __init__(self, server: ServerClock, until: float | None = None) -> None:
        """Begin the exchange for a caller that waits until that time; ``None``: no limit."""
        self._server, self._until = server, until

    def ask(self, script: Script, parts: Sequence[bytes]) -> Steps[Any]:
        """Return the server's answer.

        :raises LockUnavailable: the server did not answer.
        """
        server, late = self._server, 0
        while True:
            self.in_flight = step = RunScript(script, [*parts], self._until)
            try:
                reply = yield step
            except LockUnavailable as error:
                if self.unknown is not None:
                    raise still_unknown(self.unknown, error) from error
                if not error.outcome_unknown:
                    raise
                self.unknown = error
                self.mark_lost()
                continue
            self.sent_at = step.sent_at
            if step.doubled:
                self.orphan = step
            if type(reply) is not list or reply[0] != b"late":
                return reply
            server.compare(step.sent_at, server.clock(), int(reply[1]))
            late += 1
            if late > LATE_MAX:
                raise jumps()

    def in_flight_after(self, error: BaseException) -> RunScript | None:
        """Return the last request that may still be in flight after this error."""
        if isinstance(error, LockError) and not getattr(error, "outcome_unknown", False):
            self.in_flight = None  # a definite answer to the last request
        return self.possible_orphan()

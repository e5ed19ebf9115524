"""Release what a token may have after its caller gave up."""

from __future__ import annotations

from contextlib import suppress

from lualock._protocol.effects import CleanupLater, RunScript, Steps
from lualock._protocol.request import AcquireRequest
from lualock.errors import LockError
from lualock.scripts import SCRIPTS

ABANDON = SCRIPTS["abandon"]
WAIT = SCRIPTS["wait"]


def give_back(
    request: AcquireRequest, ticket: bytes, orphan: RunScript | None, until: float | None = None
) -> Steps[None]:
    """Abandon a token after an interruption or a timeout, when it is unknown what the token has.

    Never raises.
    """
    if orphan is not None:  # first, because it cannot fail
        yield from schedule_cleanup(request, orphan)
    for part in request.parts:
        # The caller must see the first error. The driver retries in the background; if that fails,
        # too, the lock is free when its lease ends.
        with suppress(LockError):
            yield abandon_request(part, ticket, until)


def schedule_cleanup(request: AcquireRequest, orphan: RunScript) -> Steps[None]:
    """Clean up after an orphaned request once it has expired.

    The request may still take the lock or a place in the queue. A lease that the token has won
    since is kept.
    """
    orphan.moot = True
    ticket = orphan.parts[2] if orphan.script is WAIT else b""
    kept = b"" if request.state is None else request.state.lease_id
    for part in request.parts:
        parts = (part.key, part.queue, part.token, ticket, kept)
        yield CleanupLater(RunScript(ABANDON, parts), orphan)


def abandon_request(
    request: AcquireRequest, ticket: bytes = b"", until: float | None = None
) -> RunScript:
    """Make the request that releases all that an abandoned token has."""
    parts = (request.key, request.queue, request.token, ticket, b"")
    return RunScript(ABANDON, parts, until, compensating=True)

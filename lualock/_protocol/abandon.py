"""Give back what a token may have, where its caller has given up."""

from __future__ import annotations

from lualock._protocol.effects import CleanupLater, RunScript, Steps
from lualock._protocol.request import AcquireRequest, named
from lualock.errors import LockError
from lualock.scripts import SCRIPTS

ABANDON = SCRIPTS["abandon"]
WAIT = SCRIPTS["wait"]


def give_back(
    ask: AcquireRequest, ticket: bytes, orphan: RunScript | None, until: float | None = None
) -> Steps[None]:
    """After an interruption, or at the end of the time: abandon a token of which nobody knows what
    it has. Never raises."""
    try:
        if orphan is not None:  # first, for it cannot fail
            yield schedule_cleanup(ask, orphan)
        yield abandon_request(ask, ticket, until)
    except LockError:
        # What went wrong before is what the caller must see. The driver goes on trying; at the
        # worst the lock is free again when its lease ends.
        return


def schedule_cleanup(ask: AcquireRequest, orphan: RunScript) -> CleanupLater:
    """The step that lays a orphan: abandons what a lost request may still take for nobody, the lock
    or a place in the queue, but not the lease that has been won since, if there is one."""
    orphan.moot = True
    ticket = orphan.parts[2] if orphan.script is WAIT else b""
    kept = b"" if ask.grant is None else named(ask, ask.grant)
    return CleanupLater(
        RunScript(ABANDON, (ask.key, ask.queue, ask.token, ticket, ask.fair, kept)), orphan
    )


def abandon_request(
    ask: AcquireRequest, ticket: bytes = b"", until: float | None = None
) -> RunScript:
    """The request that gives back whatever a token has that nobody has in hand any more."""
    parts = (ask.key, ask.queue, ask.token, ticket, ask.fair, b"")
    return RunScript(ABANDON, parts, until, compensating=True)

"""Give back what a token may have, where its caller has given up."""

from __future__ import annotations

from lualock._protocol.effects import CleanupLater, RunScript, Steps
from lualock._protocol.request import AcquireRequest, lease_id
from lualock.errors import LockError
from lualock.scripts import SCRIPTS

ABANDON = SCRIPTS["abandon"]
ENQUEUE = SCRIPTS["enqueue"]


def give_back(
    request: AcquireRequest, ticket: bytes, orphan: RunScript | None, until: float | None = None
) -> Steps[None]:
    """After an interruption, or at the end of the time: abandon a token of which nobody knows what
    it has. Never raises."""
    try:
        if orphan is not None:  # first, for it cannot fail
            yield schedule_cleanup(request, orphan)
        yield abandon_request(request, ticket, until)
    except LockError:
        # What went wrong before is what the caller must see. The driver goes on trying; at the
        # worst the lock is free again when its lease ends.
        return


def schedule_cleanup(request: AcquireRequest, orphan: RunScript) -> CleanupLater:
    """The step that lays a orphan: abandons what a lost request may still take for nobody, the lock
    or a place in the queue, but not the lease that has been won since, if there is one."""
    orphan.moot = True
    ticket = orphan.parts[2] if orphan.script is ENQUEUE else b""
    kept = b"" if request.state is None else lease_id(request, request.state)
    return CleanupLater(
        RunScript(ABANDON, (request.key, request.queue, request.token, ticket, request.fair, kept)),
        orphan,
    )


def abandon_request(
    request: AcquireRequest, ticket: bytes = b"", until: float | None = None
) -> RunScript:
    """The request that gives back whatever a token has that nobody has in hand any more."""
    parts = (request.key, request.queue, request.token, ticket, request.fair, b"")
    return RunScript(ABANDON, parts, until, compensating=True)

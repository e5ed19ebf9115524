"""How a lock is acquired: acquire, enqueue, claim, abandon, and the waiting between them.

The first try is one script. If somebody has the lock, the driver listens for messages and a
second script takes a place in the queue. From then on a message says whose turn it is; because a
message can be lost, every waiter also looks again by itself, the first in the queue when the
holder's lease ends, the others the more rarely the further back they are.
"""

from __future__ import annotations

from lualock._protocol.abandon import give_back, schedule_cleanup
from lualock._protocol.attempt import Attempt
from lualock._protocol.effects import Steps
from lualock._protocol.request import AcquireRequest, LeaseState
from lualock._protocol.server_clock import ServerClock
from lualock._protocol.wait import abandon, enqueue
from lualock.errors import KeyConflict, LockError, NotAcquired


def acquire(
    request: AcquireRequest, server: ServerClock, wait_s: float | None
) -> Steps[LeaseState]:
    """Take the lock, waiting up to ``wait_s`` seconds (``None``: for ever; 0: one try).

    :raises NotAcquired: somebody else still had it when the time was over.
    :raises QueueFull: as many wait already as the lock allows.
    :raises KeyConflict: the key holds something else.
    :raises LockUnavailable: the server did not answer, or answered that it cannot.
    """
    attempt = Attempt(request, server, wait_s)
    try:
        try:
            if not server.known:
                yield from attempt.connect()
            if wait_s == 0 or not request.crowded:
                step = attempt.acquire()
                try:
                    reply = yield step
                except LockError as error:
                    reply = yield from attempt.retry_until_deadline(attempt.acquire, error)
                if type(reply) is list and reply[0] == b"late":
                    sent_at = attempt.sent_at
                    reply = yield from attempt.resend_after_late(attempt.acquire, reply)
                    attempt.sent_at = sent_at  # the reply may answer any: they share a token
                request.state = attempt.read_answer(reply)
            if request.state is None:
                request.state = yield from enqueue(attempt)
            if attempt.orphan is not None:
                # Now, for what becomes of the lease (it may be released, passed on or forgotten)
                # is not known; it takes away all but that.
                yield schedule_cleanup(request, attempt.orphan)
            return request.state
        except NotAcquired as refused:
            refusal = None
            if attempt.outstanding:
                refusal = yield from abandon(attempt)
            raise (refusal or refused) from None
    except (GeneratorExit, KeyConflict):
        raise
    except BaseException:
        request.state = None
        # Also of who was refused: a look that went before the refused one may have come after it,
        # and have been answered with a place.
        orphan = attempt.possible_orphan()
        if attempt.outstanding or orphan is not None:
            yield from give_back(request, attempt.ticket, orphan, attempt.until)
        raise


def undo(request: AcquireRequest) -> Steps[None]:
    """Give back what was won, where the caller was interrupted before it heard of it."""
    if request.state is not None:
        yield from give_back(request, b"", None)

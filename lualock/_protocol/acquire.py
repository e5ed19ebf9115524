"""Acquire a lock.

The first try is one script. If the lock is held, the driver subscribes to messages, and a second
script takes a place in the queue. From then on a message tells a waiter that it is its turn. A
message can be lost, so every waiter also checks the queue on its own: the first one when the
holder's lease ends, the others more rarely the further back they are.
"""

from __future__ import annotations

from lualock._protocol.abandon import give_back, schedule_cleanup
from lualock._protocol.attempt import Attempt
from lualock._protocol.effects import Steps
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.request import AcquireRequest
from lualock._protocol.server_clock import ServerClock
from lualock._protocol.wait import abandon, wait
from lualock.errors import KeyConflict, LockError, NotAcquired


def acquire(
    request: AcquireRequest, server: ServerClock, wait_s: float | None
) -> Steps[LeaseState]:
    """Acquire the lock, waiting up to ``wait_s`` seconds (``None``: no limit; 0: one try).

    :raises NotAcquired: another holder still had the lock when the time was over.
    :raises QueueFull: the lock has as many waiters as it allows.
    :raises KeyConflict: the key holds a value that lualock did not write.
    :raises LockUnavailable: the server did not answer, or cannot carry out the request.
    """
    attempt = Attempt(request, server, wait_s)
    try:
        try:
            if wait_s == 0 or not request.crowded:
                step = attempt.acquire()
                try:
                    reply = yield step
                except LockError as error:
                    reply = yield from attempt.retry_until_deadline(attempt.acquire, error)
                if type(reply) is list and reply[0] == b"late":
                    first = attempt.in_flight
                    reply = yield from attempt.resend_after_late(attempt.acquire, reply)
                    assert first is not None
                    assert attempt.in_flight is not None
                    # The reply may answer any: they share a token.
                    attempt.in_flight.sent_at = first.sent_at
                request.state = attempt.read_answer(reply)
            if request.state is None:
                request.state = yield from wait(attempt)
            if attempt.orphan is not None:
                # Now, because the end of this lease may not be seen here (it may be passed on or
                # dropped). The cleanup keeps the lease.
                yield from schedule_cleanup(request, attempt.orphan)
            return request.state
        except NotAcquired as refused:
            refusal = None
            if attempt.needs_cleanup:
                refusal = yield from abandon(attempt)
            raise (refusal or refused) from None
    except (GeneratorExit, KeyConflict):
        raise
    except BaseException:
        request.state = None
        # Also after a refusal: an earlier request may have arrived after the refused one, and have
        # taken a place.
        orphan = attempt.possible_orphan()
        if attempt.needs_cleanup or orphan is not None:
            yield from give_back(request, attempt.ticket, orphan, attempt.requests_end_at)
        raise


def undo(request: AcquireRequest) -> Steps[None]:
    """Release a lease whose caller was interrupted before it got the lease."""
    if request.state is not None:
        yield from give_back(request, b"", None)

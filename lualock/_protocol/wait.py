"""Wait in the queue: take a place, wait for the turn, claim the lock.

A waiter is always in one of these states. ``acquire`` leads from *new* to *trying*; the rest is
here. A lock that is known to have waiters is not tried first.

=======  =====================================================  ====================================
state    event                                                  next
=======  =====================================================  ====================================
new      send ``acquire``                                       trying
trying   a fence: the lock was free                             held
..       ``held``, and the caller does not wait                 refused: ``NotAcquired``
..       ``held``: subscribe, and send ``wait``                 queued
queued   a fence as reply, or a message with ``+``              held
..       ``full``                                               refused: ``QueueFull``
..       a message with ``=``                                   queued, with an earlier next check
..       messages may be lost, or the next check is due: send   queued, in the same place
         ``wait`` again
..       a message with a fence greater than at the last check  granted
..       the caller's time is over: send ``abandon``            refused: ``NotAcquired``
granted  the claim is sent in time, or answered ``claimed``     held
..       the claim came too late: subscribe anew                queued, in the same place
any      ``late``: compare the clocks and send again; no        the same
         reply: send again while time is left
..       an error, a cancellation, a signal: give back what     abandoned
         the token has
=======  =====================================================  ====================================
"""

from __future__ import annotations

from typing import Any

from lualock._protocol.abandon import abandon_request
from lualock._protocol.attempt import Attempt
from lualock._protocol.effects import (
    AwaitMessage,
    PendingReply,
    RunScript,
    SendScript,
    Steps,
    Subscribe,
)
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.replies import Held
from lualock._protocol.schedule import CLAIM_MS
from lualock.errors import LockError, LockUnavailable, NotAcquired

REPLY_S, CROWDED_REPLY_S = 0.01, 0.04
"""How long a waiter waits for its turn before it reads the answer about its place. The second is
for locks that had waiters the last time: with 64 processes, most wake-ups only read that answer."""

TRUSTED_S = 1.0
"""A claim waits for its reply if the last answer is older: the connection may be dead then."""


def wait(attempt: Attempt) -> Steps[LeaseState]:
    """Take a place in the queue, and wait for the turn.

    A message is a fence (claim the lock), ``b"="`` and a time (this waiter has become first), or
    empty (messages may have been lost: check the queue).
    """
    token = attempt.request.token
    subscribe, await_message = Subscribe(token, attempt.requests_end_at), AwaitMessage(0.0, token)
    reply_s = CROWDED_REPLY_S if attempt.request.crowded else REPLY_S
    while True:
        try:
            attempt.channel = yield subscribe
        except LockError as error:
            attempt.mark_lost()  # a request whose reply was not awaited
            attempt.channel = yield from attempt.retry_until_deadline(lambda: subscribe, error)
        message, subscribe.anew = None, False
        try:
            step = attempt.check_queue()
            reply = yield step
            if type(step) is SendScript:
                # If the lock changes hands fast, it is this waiter's turn soon. Not waking up for
                # the answer leaves that time to the holder.
                await_message.seconds = min(reply_s, attempt.left_s())
                message = yield await_message
                if message is not None and message[:1] == b"=":
                    message = b""  # the answer to this request is newer
                if not message:
                    reply = _answer_to(reply)
        except LockError as error:
            reply = yield from attempt.retry_until_deadline(attempt.check_queue, error)
        if not message:
            if reply is None:
                continue  # repeat it, and wait for the reply
            if reply[0] == b"late":
                reply = yield from attempt.resend_after_late(attempt.check_queue, reply)
            state = attempt.read_queue_answer(reply)
            if state is not None:
                return state
            if message is not None:
                continue  # the message says: check again
            await_message.seconds = attempt.next_check_s()
            message = yield await_message
            while message is not None and message[:1] == b"=":
                attempt.mark_first(int(message[1:]))
                await_message.seconds = attempt.next_check_s()
                message = yield await_message
        if message is None:
            attempt.check_time()
        # A message whose fence is not greater than the lock's at the last check is old: that turn
        # passed unclaimed.
        elif message[:16] > attempt.seen_fence:
            state = yield from claim(attempt, message)
            if state is not None:
                return state
            # Perhaps it came by the wrong server: a former primary passes on the messages of the
            # new one, where this client is not subscribed.
            subscribe.anew = True


def _answer_to(check_queue: PendingReply) -> Any:
    """Return the reply to a request that was sent without waiting; ``None``: it has not come.

    An error counts as no reply: only an awaited reply is proved to answer this request.
    """
    reply = check_queue.poll()
    return None if isinstance(reply, LockError) else reply


def claim(attempt: Attempt, message: bytes) -> Steps[LeaseState | None]:
    """Claim the lock that a message granted; ``None``: the message came too late."""
    attempt.mark_granted()
    fence, ttl_s = int(message[:16]), attempt.request.ttl_ms / 1000
    lease_id = message[:16] + attempt.request.token
    if message[16:] == b"+":  # this waiter took the lock itself
        return LeaseState(fence, lease_id, attempt.oldest_sent_at + ttl_s, attempt.queued)
    # The lock was granted for CLAIM_MS or the ttl, and the message says when.
    now, granted_us, server = attempt.clock(), int(message[16:]), attempt.server
    if now > server.stale_at:
        server.refine(attempt.began_at, now, granted_us)
    granted_at = server.at_earliest(granted_us, now)
    certain_until = granted_at + min(ttl_s, CLAIM_MS / 1000) if granted_at is not None else now
    # Before the first answer, the message itself shows that a request has arrived.
    alive = now - (attempt.answered_at if attempt.queued else attempt.sent_at) < TRUSTED_S
    if alive and certain_until - now > min(ttl_s, CLAIM_MS / 1000) / 2:
        # There is enough time to begin at once, and to read the reply to the claim later.
        try:
            pending = yield attempt.claim(SendScript, lease_id)
        except LockUnavailable:
            pass
        else:
            return LeaseState(fence, lease_id, certain_until, True, pending, now + ttl_s)
    step = attempt.claim(RunScript, lease_id)
    attempt.sent_at = attempt.clock()
    try:
        reply = yield step
    except LockError as error:
        reply = yield from attempt.retry_until_deadline(lambda: step, error)
    if reply != b"claimed":
        return None
    return LeaseState(fence, lease_id, attempt.sent_at + ttl_s, True)


def abandon(attempt: Attempt) -> Steps[NotAcquired | None]:
    """Leave the queue after a timeout; return the error that names the holder, if it is known."""
    request = attempt.request
    if attempt.in_flight is not None:
        attempt.in_flight.moot = True
    try:
        reply = yield abandon_request(request, attempt.ticket, attempt.requests_end_at)
    except LockError:
        reply = None  # the driver retries in the background
    attempt.needs_cleanup = False
    if not isinstance(reply, list) or reply[0] != b"left" or len(reply) == 1:
        return None
    now = attempt.clock()
    held = Held(reply[1], reply[2], reply[3], now, None if reply[4] < 0 else reply[4])
    return held.refusal(request.name, now, NotAcquired, wait_s=attempt.wait_s)

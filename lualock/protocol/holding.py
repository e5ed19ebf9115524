"""The verbs of a holder: release, hand_over, extend; and inspect, which is everybody's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lualock.errors import LockError, LockUnavailable
from lualock.keys import display_name
from lualock.options import split_about
from lualock.protocol.replies import LockInfo, conflict, lost, seconds
from lualock.protocol.steps import Batch, Call, Clock, Later, Steps
from lualock.protocol.terms import Ask, Grant
from lualock.script import SCRIPTS

RELEASE = SCRIPTS["release"]
HAND_OVER = SCRIPTS["hand_over"]
EXTEND = SCRIPTS["extend"]
CLAIM = SCRIPTS["claim"]
INSPECT = SCRIPTS["inspect"]
ABANDON = SCRIPTS["abandon"]
ENQUEUE = SCRIPTS["enqueue"]

BATCH = 250
"""How many leases are extended in one round trip: as many as a server answers in some
milliseconds, so that others need not wait long, and as a socket's buffers hold."""


def resend(step: Call, error: LockUnavailable) -> Steps[Any]:
    """Send a call again, once, where its reply was lost; else raise what went wrong."""
    if not error.outcome_unknown:
        raise error
    try:
        return (yield step)
    except LockUnavailable as second:
        raise still_unknown(error, second) from second


def still_unknown(first: LockUnavailable, second: LockUnavailable) -> LockUnavailable:
    """The error for a request that was repeated: whatever became of the second, the first may have
    been carried out."""
    if second.outcome_unknown:
        return second
    return LockUnavailable(f"{first}; and asking again failed: {second}", outcome_unknown=True)


def release(ask: Ask, grant: Grant) -> Steps[None]:
    """Give the lock back. A repeat of a release that happened is a release that happened.

    :raises LeaseLost: the lease had ended before; nothing was changed.
    """
    asked_again = False
    try:
        lease = named(ask, grant)
        step = hand_over(ask, lease) if grant.waited else Call(RELEASE, (ask.key, lease))
        try:
            reply = yield step
        except LockUnavailable as error:
            asked_again = True
            reply = yield from resend(step, error)
        if reply == b"waited":  # since the lease began others have come
            step = hand_over(ask, lease)
            try:
                reply = yield step
            except LockUnavailable as error:
                asked_again = True
                reply = yield from resend(step, error)
        asked_again = asked_again or step.doubled
    except GeneratorExit:
        raise
    except LockUnavailable:
        # Whoever had it goes on without it: it is given back when the server answers again.
        disown(grant)
        if grant.fence:
            yield from give_back(ask, b"", None)
        raise
    except LockError:
        raise
    except BaseException:
        # Cancelled or interrupted: it is released all the same.
        grant.released = True
        yield from give_back(ask, b"", None)
        raise
    if type(reply) is bytes and reply != b"missing":
        grant.released = True
        return
    if asked_again and reply[0] != b"conflict":
        # Not ours any more, but was it when the first request came? The server remembers who had
        # the lock just before; beyond that nobody knows, which is not the same as "it had ended".
        disown(grant)
        raise LockUnavailable(
            f"lock {display_name(ask.name)!r} is not ours any more, but the reply to its release "
            "was lost: it was released, or its lease had ended before",
            outcome_unknown=True,
        )
    grant.lost = reply[0] != b"conflict"
    raise lost(ask.name, ask.key, reply, "released")


def disown(grant: Grant) -> None:
    """A lease that was, or will be, released promises nothing more: another may have the lock."""
    grant.claim, grant.deadline = None, -math.inf


def is_disowned(grant: Grant) -> bool:
    """Whether it was, or will be, released, though nobody has said so yet."""
    return grant.deadline == -math.inf


def named(ask: Ask, grant: Grant) -> bytes:
    """A lease as the server's record has it. By its fence too, for a request that was lost may take
    the lock again, under the same token, when the lease has ended and others have had the lock.
    (Of a job's place only the token is known.)"""
    if grant.named:
        return grant.named
    return b"%016d%b" % (grant.fence, ask.token) if grant.fence else ask.token


def hand_over(ask: Ask, lease: bytes) -> Call:
    """The request that releases a lock that others wait for."""
    return Call(HAND_OVER, (ask.key, ask.queue, lease, ask.fair))


def give_back(
    ask: Ask, ticket: bytes, ghost: Call | None, until: float | None = None
) -> Steps[None]:
    """After an interruption, or at the end of the time: abandon a token of which nobody knows what
    it has. Never raises."""
    try:
        if ghost is not None:  # first, for it cannot fail
            yield lay(ask, ghost)
        yield forsake(ask, ticket, until)
    except LockError:
        # What went wrong before is what the caller must see. The driver goes on trying; at the
        # worst the lock is free again when its lease ends.
        return


def lay(ask: Ask, ghost: Call) -> Later:
    """The step that lays a ghost: abandons what a lost request may still take for nobody, the lock
    or a place in the queue, but not the lease that has been won since, if there is one."""
    ghost.moot = True
    ticket = ghost.parts[2] if ghost.script is ENQUEUE else b""
    kept = b"" if ask.grant is None else named(ask, ask.grant)
    return Later(Call(ABANDON, (ask.key, ask.queue, ask.token, ticket, ask.fair, kept)), ghost)


def forsake(ask: Ask, ticket: bytes = b"", until: float | None = None) -> Call:
    """The request that gives back whatever a token has that nobody has in hand any more."""
    parts = (ask.key, ask.queue, ask.token, ticket, ask.fair, b"")
    return Call(ABANDON, parts, until, compensating=True)


def leave(steps: Steps[None], body_error: BaseException | None) -> Steps[None]:
    """Release at the end of a ``with`` body, without ever hiding what the body raised."""
    try:
        yield from steps
    except LockError as error:
        if body_error is None:
            raise
        note(body_error, f"and then: {error}")


def note(error: BaseException, text: str) -> None:
    """Attach a line to an exception, as :meth:`BaseException.add_note` does from Python 3.11."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:
        vars(error)["__notes__"] = [*getattr(error, "__notes__", []), text]


def extend(ask: Ask, grant: Grant, ttl_ms: int, clock: Clock) -> Steps[float]:
    """Let the lease last ``ttl_ms`` from now on; returns its deadline on the driver's clock.

    :raises LeaseLost: the lease had ended, or was released, before; nothing was changed.
    """
    sent = clock()
    deadline = sent + ttl_ms / 1000
    # Only what is to shorten it can: whatever else arrives late takes nothing away.
    shorten = shortens(grant, deadline)
    step = _extend(ask, grant, ttl_ms, shorten=shorten)
    claim, before, at_most_s = grant.claim, grant.deadline, grant.at_most_s
    if shorten:  # if it is not answered, it may arrive at any time
        grant.claim, grant.deadline = None, min(before, deadline)
        grant.at_most_s = min(at_most_s, ttl_ms / 1000)
    # Another thread or task may ask for less meanwhile: what it has not heard of is not undone.
    believed = grant.deadline, grant.at_most_s
    try:
        reply = yield step
        if grant.at_most_s == believed[1] and not step.doubled:
            grant.at_most_s = at_most_s
    except LockUnavailable as error:
        if shorten and not error.outcome_unknown and believed == (grant.deadline, grant.at_most_s):
            grant.claim, grant.deadline, grant.at_most_s = claim, before, at_most_s  # nothing done
        reply = yield from resend(step, error)
    if reply == b"extended":
        grant.claimed_deadline = 0.0
        return min(deadline, sent + grant.at_most_s)
    raise lost(ask.name, ask.key, reply, "extended")


def shortens(grant: Grant, deadline: float) -> bool:
    """Whether the lease may last longer than that already. (A claim of which nothing was heard may
    have been carried out.)"""
    return deadline < max(grant.deadline, grant.claimed_deadline)


def _extend(ask: Ask, grant: Grant, ttl_ms: int, *, shorten: bool) -> Call:
    told = named(ask, grant), b"%d" % ttl_ms, b"1" if shorten else b"0"
    return Call(EXTEND, (ask.key, ask.queue, *told))


def extend_all(
    wanted: Sequence[tuple[Ask, Grant, int]], clock: Clock, within_s: float
) -> Steps[list[float | LockError]]:
    """Extend many leases (ask, grant, ttl_ms), in as few round trips as possible, within some time;
    none of them is shortened.

    Returns for each its new deadline on the driver's clock, or why there is none: ``LeaseLost``,
    ``KeyConflict``, or a ``LockUnavailable`` for which it should be tried again.
    """
    outcomes: list[float | LockError] = []
    for start in range(0, len(wanted), BATCH):
        part = wanted[start : start + BATCH]
        calls = [_extend(ask, grant, ttl_ms, shorten=False) for ask, grant, ttl_ms in part]
        sent = clock()
        step = Batch(calls, sent + within_s)
        try:
            replies = yield step
        except LockUnavailable as error:
            if not error.outcome_unknown:
                return outcomes + [error] * (len(wanted) - start)
            # A connection that broke says nothing of the next one.
            sent = clock()
            step.until = sent + within_s
            try:
                replies = yield step
            except LockUnavailable as again:
                return outcomes + [again] * (len(wanted) - start)
        for (ask, grant, ttl_ms), reply in zip(part, replies, strict=True):
            if reply == b"extended":
                outcomes.append(sent + min(ttl_ms / 1000, grant.at_most_s))
            elif isinstance(reply, LockError):
                outcomes.append(reply)
            else:
                outcomes.append(lost(ask.name, ask.key, reply, "extended"))
    return outcomes


def inspect(name: str | bytes, key: bytes, queue: bytes) -> Steps[LockInfo]:
    """Say who has the lock."""
    step = Call(INSPECT, (key, queue))
    try:
        reply = yield step
    except LockUnavailable as error:
        reply = yield from resend(step, error)
    shown = display_name(name)
    if reply[0] == b"free":
        return LockInfo(shown, held=False, waiters=reply[1])
    if reply[0] != b"held":
        raise conflict(key)
    holder, metadata = split_about(reply[4])
    return LockInfo(
        shown,
        held=True,
        holder=holder,
        metadata=metadata,
        fence=int(reply[3]),
        held_s=reply[2] / 1000,
        remaining_s=seconds(reply[1]),
        waiters=reply[5],
    )

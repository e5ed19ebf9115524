"""Extend one lease, or many in one round trip."""

from __future__ import annotations

from collections.abc import Sequence

from lualock._protocol.effects import Clock, Pipeline, RunScript, Steps
from lualock._protocol.replies import lost
from lualock._protocol.request import AcquireRequest, LeaseState
from lualock._protocol.resend import resend
from lualock.errors import LockError, LockUnavailable
from lualock.scripts import SCRIPTS

EXTEND = SCRIPTS["extend"]
BATCH = 250
"""How many leases are extended in one round trip: a server answers them in some milliseconds, so
other clients do not wait long, and they fit into a socket's buffers."""


def extend(request: AcquireRequest, state: LeaseState, ttl_ms: int, clock: Clock) -> Steps[float]:
    """Let the lease last ``ttl_ms`` from now on; return its deadline on the driver's clock.

    :raises LeaseLost: the lease had ended, or was released, before; nothing was changed.
    """
    sent_at = clock()
    deadline = sent_at + ttl_ms / 1000
    # Only a request marked so can shorten the lease: another that arrives late changes nothing.
    shorten = shortens(state, deadline)
    step = _extend(request, state, ttl_ms, shorten=shorten)
    claim, previous_deadline, at_most_s = state.claim, state.deadline, state.at_most_s
    if shorten:  # without an answer it may still be executed at any time
        state.claim, state.deadline = None, min(previous_deadline, deadline)
        state.at_most_s = min(at_most_s, ttl_ms / 1000)
    # Another thread or task may shorten the lease meanwhile: that is not undone here.
    believed = state.deadline, state.at_most_s
    try:
        reply = yield step
        if state.at_most_s == believed[1] and not step.doubled:
            state.at_most_s = at_most_s
    except LockUnavailable as error:
        if shorten and not error.outcome_unknown and believed == (state.deadline, state.at_most_s):
            state.claim, state.deadline, state.at_most_s = (
                claim,
                previous_deadline,
                at_most_s,
            )  # nothing done
        reply = yield from resend(step, error)
    if reply == b"extended":
        state.claimed_deadline = 0.0
        return min(deadline, sent_at + state.at_most_s)
    raise lost(request.name, request.key, reply, "extended")


def shortens(state: LeaseState, deadline: float) -> bool:
    """Return whether the lease may last longer than that already.

    A claim without an answer may have been executed.
    """
    return deadline < max(state.deadline, state.claimed_deadline)


def _extend(request: AcquireRequest, state: LeaseState, ttl_ms: int, *, shorten: bool) -> RunScript:
    args = state.lease_id, b"%d" % ttl_ms, b"1" if shorten else b"0"
    return RunScript(EXTEND, (request.key, request.queue, *args))


def extend_all(
    leases: Sequence[tuple[AcquireRequest, LeaseState, int]], clock: Clock, within_s: float
) -> Steps[list[float | LockError]]:
    """Extend many leases (request, state, ttl_ms) in as few round trips as possible.

    None of them is shortened. Returns for each lease its new deadline on the driver's clock, or the
    error: ``LeaseLost``, ``KeyConflict``, or ``LockUnavailable``, after which a retry may succeed.

    :param within_s: how long one round trip may take.
    """
    outcomes: list[float | LockError] = []
    for start in range(0, len(leases), BATCH):
        part = leases[start : start + BATCH]
        calls = [_extend(request, state, ttl_ms, shorten=False) for request, state, ttl_ms in part]
        sent_at = clock()
        step = Pipeline(calls, sent_at + within_s)
        try:
            replies = yield step
        except LockUnavailable as error:
            if not error.outcome_unknown:
                return outcomes + [error] * (len(leases) - start)
            # A broken connection says nothing about the next one.
            sent_at = clock()
            step.until = sent_at + within_s
            try:
                replies = yield step
            except LockUnavailable as again:
                return outcomes + [again] * (len(leases) - start)
        for (request, state, ttl_ms), reply in zip(part, replies, strict=True):
            if reply == b"extended":
                outcomes.append(sent_at + min(ttl_ms / 1000, state.at_most_s))
            elif isinstance(reply, LockError):
                outcomes.append(reply)
            else:
                outcomes.append(lost(request.name, request.key, reply, "extended"))
    return outcomes

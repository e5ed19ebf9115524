"""Extend one lease, or many in one round trip."""

from __future__ import annotations

from collections.abc import Sequence

from lualock._protocol.effects import Clock, Pipeline, RunScript, Steps
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.replies import lost
from lualock._protocol.request import AcquireRequest
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
    ttl_s = ttl_ms / 1000
    # Only a request marked so can shorten the lease: another that arrives late changes nothing.
    shorten = state.may_outlast(sent_at + ttl_s)
    shortening = state.shorten_to(sent_at + ttl_s, ttl_s) if shorten else None
    certain = True
    for part in request.parts:
        step = _extend(part, state, ttl_ms, shorten=shorten)
        try:
            reply = yield step
        except LockUnavailable as error:
            certain = False
            reply = yield from resend(step, error)
        certain = certain and not step.doubled
        if reply != b"extended":
            raise lost(part.name, part.key, reply, "extended")
    if shortening is not None and certain:
        state.shortened(shortening)
    state.claim_superseded()
    return state.certain_until(sent_at, ttl_s)


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
                outcomes.append(state.certain_until(sent_at, ttl_ms / 1000))
            elif isinstance(reply, LockError):
                outcomes.append(reply)
            else:
                outcomes.append(lost(request.name, request.key, reply, "extended"))
    return outcomes


def worst(outcomes: Sequence[float | LockError]) -> float | LockError:
    """Return the outcome for one lease on several locks: it has ended if it has at one of them."""
    ends = [outcome for outcome in outcomes if isinstance(outcome, float)]
    errors = [outcome for outcome in outcomes if not isinstance(outcome, float)]
    errors.sort(key=lambda error: isinstance(error, LockUnavailable))
    return errors[0] if errors else min(ends)

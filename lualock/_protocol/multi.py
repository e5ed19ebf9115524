"""Acquire several locks at once, all or none, as one lease: one token, one fence, one end.

The first try is one script, which takes all locks or none. If one of them is held, the caller waits
for one lock after the other, in the order of their keys, so no two callers wait for each other. It
extends meanwhile what it has. When it has all, the same script makes one lease of them. If a lock
was lost until then, the caller begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lualock._protocol.abandon import give_back
from lualock._protocol.acquire import acquire as acquire_one
from lualock._protocol.adopt import take
from lualock._protocol.effects import (
    DRIVER_WRITES,
    MIN_REQUEST_S,
    AwaitMessage,
    Clock,
    Effect,
    Steps,
    T,
    relayed,
)
from lualock._protocol.extend import extend_all
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.release import release as release_one
from lualock._protocol.replies import Held, conflict
from lualock._protocol.request import AcquireRequest, MultiRequest
from lualock._protocol.server_clock import ServerClock
from lualock.errors import LeaseLost, LockError, LockUnavailable, NotAcquired
from lualock.scripts import family, with_keys

ACQUIRE_ALL = family("multi")["acquire_all"]

EXTEND_WITHIN_S, RETRY_S = 1.0, 0.1
"""How long one attempt to extend the locks that a waiting caller has may take, and the pause after
one that failed."""


def acquire_all(
    request: AcquireRequest,
    server: ServerClock,
    yielding: bytes = b"",
    until: float | None = None,
    refusal: Callable[[AcquireRequest, list[Any]], LockError] | None = None,
) -> Steps[LeaseState]:
    """Take all locks of a request by one script, or none.

    :param yielding: for each lock the token of a lease that yields it, because the caller has it.
    :param until: when the caller stops waiting; ``None``: no limit.
    :param refusal: makes the error from the request for the held lock and the reply.
    :raises NotAcquired: another holder has one of them.
    :raises KeyConflict: a key holds a value that lualock did not write.
    :raises LockUnavailable: the server did not answer.
    """
    parts = request.parts
    keys = [key for part in parts for key in (part.key, part.queue)]
    ttl_ms, holder_info = b"%d" % request.ttl_ms, request.holder_info
    words = *keys, request.token, ttl_ms, DRIVER_WRITES, holder_info, yielding
    script = with_keys(ACQUIRE_ALL, len(keys))

    def refuse(reply: list[Any]) -> LockError:
        part = parts[reply[-1]]
        if reply[0] != b"held":
            return conflict(part.key)
        if refusal is not None:
            return refusal(part, reply)
        now = server.clock()
        return Held(reply[1], reply[2], reply[3], now).refusal(part.name, now, NotAcquired)

    return take(request, server, script, words, refuse, until=until)


def acquire(
    request: MultiRequest, server: ServerClock, wait_s: float | None, kept_token: bytes = b""
) -> Steps[LeaseState]:
    """Acquire all locks, waiting up to ``wait_s`` seconds (``None``: no limit; 0: one try).

    :param kept_token: the token of locks that were kept for the caller; empty: none was.
    :raises NotAcquired: another holder still had one of the locks when the time was over.
    :raises QueueFull: one of them has as many waiters as it allows.
    :raises KeyConflict: a key holds a value that lualock did not write.
    :raises LockUnavailable: the server did not answer, or cannot carry out a request.
    """
    give_up_at = math.inf if wait_s is None else server.clock() + wait_s
    until = give_up_at if wait_s else None
    try:
        try:
            return (yield from _acquire(request, server, give_up_at, until, kept_token))
        except LockError:
            yield from _give_back(request.turns, until)
            raise
    except GeneratorExit:
        raise
    except BaseException:
        # An interruption may come in the lines above, too.
        yield from _give_back(request.turns, until)
        raise


def _acquire(
    request: MultiRequest,
    server: ServerClock,
    give_up_at: float,
    until: float | None,
    kept_token: bytes,
) -> Steps[LeaseState]:
    yielding = kept_token * len(request.parts)
    while True:
        try:
            return (yield from acquire_all(request, server, yielding, until))
        except NotAcquired:
            # In a later round a lock was lost while the caller waited for another one.
            yield from _give_back(request.turns, until)
            if server.clock() >= give_up_at:
                raise
        request.renew_token()
        yield from _wait_for_each(request.turns, server, until, kept_token)
        yielding = b"".join(turn.token for turn in request.turns)


def _wait_for_each(
    turns: Sequence[AcquireRequest], server: ServerClock, until: float | None, kept_token: bytes
) -> Steps[None]:
    """Acquire the locks one after the other, and keep each until the caller has the last one."""
    held = _Held(server.clock, until)
    for turn in turns:
        yield from held.kept_during(_wait_for(turn, server, until, kept_token))
        held.turns.append(turn)


def _wait_for(
    turn: AcquireRequest, server: ServerClock, until: float | None, kept_token: bytes
) -> Steps[None]:
    if kept_token:
        try:
            yield from acquire_all(turn, server, kept_token, until)
            return
        except NotAcquired:
            pass  # this lock was not kept
    # At least a moment, because 0 means one try without a limit for its request.
    left_s = None if until is None else max(until - server.clock(), MIN_REQUEST_S)
    yield from acquire_one(turn, server, left_s)


def _give_back(turns: Sequence[AcquireRequest], until: float | None) -> Steps[None]:
    for turn in turns:
        if turn.state is not None:
            yield from give_back(turn, b"", None, until)
            turn.state = None


class _Held:
    """The locks that a caller has while it waits for the next one."""

    def __init__(self, clock: Clock, until: float | None) -> None:
        self.turns: list[AcquireRequest] = []
        self._clock = clock
        self._until = math.inf if until is None else until
        self._retry_at = -math.inf

    def kept_during(self, steps: Steps[T]) -> Steps[T]:
        """Carry out steps that wait, and extend the leases of the held locks in time."""
        return relayed(steps, self._perform)

    def _perform(self, step: Effect) -> Steps[Any]:
        if self.turns and isinstance(step, AwaitMessage):
            return (yield from self._await_message(step))
        return (yield step)

    def _await_message(self, step: AwaitMessage) -> Steps[bytes | None]:
        extend_at = self._extend_at()
        step.seconds = max(0.0, min(step.seconds, extend_at - self._clock()))
        message: bytes | None = yield step
        if message is None and self._clock() >= extend_at:
            yield from self._extend()
        # Without a message the waiter checks the queue. So it need not know how long it still had
        # to wait, which a message that the driver kept may have changed.
        return message

    def _extend_at(self) -> float:
        """Return when to extend: when a third of a ttl has passed, or some time after a failure."""
        ends = (
            turn.state.deadline - turn.ttl_ms / 1000 * 2 / 3
            for turn in self.turns
            if turn.state is not None and not turn.state.lost
        )
        return max(min(ends, default=math.inf), self._retry_at)

    def _extend(self) -> Steps[None]:
        leases = [(turn, turn.state, turn.ttl_ms) for turn in self.turns if turn.state is not None]
        # It may be sent twice.
        within_s = min(EXTEND_WITHIN_S, max(0.0, self._until - self._clock()) / 2)
        outcomes = yield from extend_all(leases, self._clock, within_s)
        for (_, state, _), outcome in zip(leases, outcomes, strict=True):
            if isinstance(outcome, float):
                state.extended(outcome, state.revision)
            elif isinstance(outcome, LockUnavailable):
                self._retry_at = self._clock() + RETRY_S
            else:
                state.mark_lost()  # so it is not extended; the caller learns it in the end


def release(request: AcquireRequest, state: LeaseState) -> Steps[None]:
    """Release all locks of a lease.

    :raises LeaseLost: the lease on one of them had ended before.
    :raises LockUnavailable: the server did not answer, or an outcome is unknown.
    """
    problem: LockError | None = None
    for at, part in enumerate(request.parts):
        part.state = LeaseState(state.fence, state.lease_id, state.deadline)
        try:
            yield from release_one(part, part.state)
        except LeaseLost as lost:
            problem = lost
        except LockError as error:
            problem = problem or error
        except GeneratorExit:
            raise
        except BaseException:
            state.mark_released()
            for other in request.parts[at + 1 :]:
                yield from give_back(other, b"", None)
            raise
    if problem is None:
        state.mark_released()
        return
    if isinstance(problem, LockUnavailable):
        state.release_unknown()
    elif isinstance(problem, LeaseLost):
        state.mark_lost()
    raise problem

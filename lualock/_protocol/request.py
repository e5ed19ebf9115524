"""What an acquisition asks for, and what it wins."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lualock._core import fork
from lualock._protocol.effects import PendingReply


@dataclass(slots=True)
class AcquireRequest:
    """One acquisition: the lock, the token, and what the lease shall be.

    ``band`` is where the places of its priority begin in the queue, ``crowded`` a hint that others
    are probably waiting, so that trying without a place is in vain.
    """

    name: str | bytes
    key: bytes
    queue: bytes
    token: bytes
    ttl_ms: int
    holder_info: bytes
    priority_base: bytes
    max_waiters: bytes
    fair: bytes
    crowded: bool
    pid: int = field(default_factory=fork.current)
    """The process that asks. (It may be forked while it does; its child has nothing of this.)"""
    state: LeaseState | None = None
    """What it won; kept here so that an interruption between winning and telling loses nothing."""


@dataclass(slots=True)
class LeaseState:
    """What an acquisition won. ``deadline`` is on the driver's clock, in seconds.

    ``waited``: others may be waiting too. ``claim`` is the reply, still to come, that makes the
    lease last until ``claimed_deadline``.
    """

    fence: int
    deadline: float
    waited: bool = False
    claim: PendingReply | None = None
    claimed_deadline: float = 0.0
    at_most_s: float = math.inf
    """What is left of the lease, from any time on, if a request to shorten it whose reply was lost
    arrives then."""
    released: bool = False
    lost: bool = False
    """The server said that it is not ours any more."""
    lease_id: bytes = b""
    """The lease as the server's record has it, where that is known already."""


def release_unknown(state: LeaseState) -> None:
    """A lease that was, or will be, released promises nothing more: another may have the lock."""
    state.claim, state.deadline = None, -math.inf


def is_release_unknown(state: LeaseState) -> bool:
    """Whether it was, or will be, released, though nobody has said so yet."""
    return state.deadline == -math.inf


def lease_id(request: AcquireRequest, state: LeaseState) -> bytes:
    """A lease as the server's record has it. By its fence too, for a request that was lost may take
    the lock again, under the same token, when the lease has ended and others have had the lock.
    (Of a job's place only the token is known.)"""
    if state.lease_id:
        return state.lease_id
    return b"%016d%b" % (state.fence, request.token) if state.fence else request.token

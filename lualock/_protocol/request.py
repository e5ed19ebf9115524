"""Define the request for a lock, and the state of the lease that it wins."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lualock._core import fork
from lualock._protocol.effects import PendingReply


@dataclass(slots=True)
class AcquireRequest:
    """One acquisition: the lock, the token, and the options of the lease.

    ``priority_base`` is the lowest score of its priority in the queue. ``crowded`` is a hint that
    the lock probably has waiters, so that a try outside the queue fails.
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
    """The process that sends the request. If it forks meanwhile, the child owns nothing of this."""
    state: LeaseState | None = None
    """The lease, kept here so that an interruption before the caller gets it does not lose it."""


@dataclass(slots=True)
class LeaseState:
    """The state of a lease. ``deadline`` is on the driver's clock, in seconds.

    ``lease_id``: the lease as the server's record has it, its fence and its token. The fence is
    included because a lost request may take the lock again under the same token after the lease has
    ended and another holder has had the lock. Of a job's reservation only the token is known.
    ``waited``: the lock may have waiters. ``claim`` is the pending reply that makes the lease last
    until ``claimed_deadline``.
    """

    fence: int
    lease_id: bytes
    deadline: float
    waited: bool = False
    claim: PendingReply | None = None
    claimed_deadline: float = 0.0
    at_most_s: float = math.inf
    """What is left of the lease if a request to shorten it, whose reply was lost, is executed late.
    """
    released: bool = False
    lost: bool = False
    """The server reported that the lease has ended."""


def release_unknown(state: LeaseState) -> None:
    """End a lease that was, or will be, released: another holder may have the lock."""
    state.claim, state.deadline = None, -math.inf


def is_release_unknown(state: LeaseState) -> bool:
    """Return whether the lease was, or will be, released, without a confirmation yet."""
    return state.deadline == -math.inf


def owned(
    request: AcquireRequest, reply: list[Any], sent_at: float, *, waited: bool = False
) -> LeaseState:
    """Return the state of a lease that the token has already, from a reply ``owned``."""
    _, left_ms, fence = reply
    return LeaseState(int(fence), fence + request.token, sent_at + left_ms / 1000, waited)

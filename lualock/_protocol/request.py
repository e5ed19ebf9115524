"""Define the request for a lock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lualock._core import fork
from lualock._protocol.lease_state import LeaseState


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
    crowded: bool
    pid: int = field(default_factory=fork.current)
    """The process that sends the request. If it forks meanwhile, the child owns nothing of this."""
    state: LeaseState | None = None
    """The lease, kept here so that an interruption before the caller gets it does not lose it."""


def owned(
    request: AcquireRequest, reply: list[Any], sent_at: float, *, waited: bool = False
) -> LeaseState:
    """Return the state of a lease that the token has already, from a reply ``owned``."""
    _, left_ms, fence = reply
    return LeaseState(int(fence), fence + request.token, sent_at + left_ms / 1000, waited)

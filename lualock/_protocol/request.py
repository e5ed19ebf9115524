"""Define the request for a lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
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

    @property
    def parts(self) -> tuple[AcquireRequest, ...]:
        """The requests for one lock each that this one consists of."""
        return (self,)

    @property
    def turns(self) -> tuple[AcquireRequest, ...]:
        """The requests that wait in the queues."""
        return (self,)


class MultiRequest(AcquireRequest):
    """One acquisition of several locks. The fields are those of the first one.

    It waits in each queue under a token of its own: a message names no lock but only a token, and
    a late copy of a request for one lock must not be taken for a request of the lease.

    :param requests: for each lock one with the token that waits for it; the first one is of the
        lock that names all.
    :param new_token: makes a token.
    :param token: the token of the lease; ``None``: a new one.
    """

    __slots__ = ("_new_token", "parts", "turns")
    parts: tuple[AcquireRequest, ...]
    turns: tuple[AcquireRequest, ...]

    def __init__(
        self,
        requests: Sequence[AcquireRequest],
        new_token: Callable[[], bytes],
        token: bytes | None = None,
    ) -> None:
        for one in fields(AcquireRequest):
            setattr(self, one.name, getattr(requests[0], one.name))
        self.crowded = False
        self._new_token = new_token
        self.turns = tuple(sorted(requests, key=lambda request: request.key))
        self._use_token(token or new_token())

    def renew_token(self) -> None:
        """Use another token from now on: what a refused try may still have is released by its
        token, perhaps when a later try has succeeded."""
        self._use_token(self._new_token())

    def _use_token(self, token: bytes) -> None:
        self.token = token
        self.parts = tuple(replace(turn, token=token, state=None) for turn in self.turns)


def owned(
    request: AcquireRequest, reply: list[Any], sent_at: float, *, waited: bool = False
) -> LeaseState:
    """Return the state of a lease that the token has already, from a reply ``owned``."""
    _, left_ms, fence = reply
    return LeaseState(int(fence), fence + request.token, sent_at + left_ms / 1000, waited)

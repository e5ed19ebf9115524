"""What replies mean, in words and as errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lualock._core.keys import display_name
from lualock._core.options import split_about
from lualock.errors import KeyConflict, LeaseLost, NotAcquired


@dataclass(frozen=True, slots=True)
class LockInfo:
    """Who has a lock, as the server said it. All times in seconds.

    ``held`` is false for a free lock, and then the rest is empty but for ``waiters``.
    ``remaining_s`` is ``None`` for a lock that somebody stripped of its expiry by hand (it would
    last for ever). ``waiters`` is how many wait in the queue.
    """

    name: str
    held: bool
    holder: str | None = None
    metadata: str = ""
    fence: int | None = None
    held_s: float | None = None
    remaining_s: float | None = None
    waiters: int = 0


def seconds(ttl_ms: int) -> float | None:
    """A server's answer to PTTL, in seconds; ``None`` for no expiry."""
    return None if ttl_ms < 0 else ttl_ms / 1000


def conflict(key: bytes) -> KeyConflict:
    """The error for a key that is not a lock's."""
    return KeyConflict(
        f"the key {display_name(key)!r} holds something that lualock did not write; nothing was "
        "changed. Delete that key, or choose another name or prefix for the lock"
    )


@dataclass(slots=True)
class Held:
    """What is known of a lock that somebody else has, and when it was learnt."""

    ttl_ms: int
    held_ms: int
    about: bytes
    at: float
    ahead: int | None = None

    def refusal(self, name: str | bytes, now: float, kind: type[NotAcquired]) -> NotAcquired:
        """The error that says so."""
        shown = display_name(name)
        passed_s = now - self.at
        held_s = self.held_ms / 1000 + passed_s
        left_s = seconds(self.ttl_ms)
        if left_s is not None:
            left_s = max(0.0, left_s - passed_s)
        holder = split_about(self.about)[0] if self.about else None
        if holder is None:
            text = f"lock {shown!r} was not acquired: it is free, and it is the turn of others"
        else:
            ends = "its lease has no end" if left_s is None else f"its lease ends in {left_s:.3f} s"
            text = f"lock {shown!r} is held by {holder} for {held_s:.3f} s; {ends} unless renewed"
        if self.ahead is not None:
            text += f"; ahead in the queue: {self.ahead}"
        return kind(
            text,
            name=shown,
            holder=holder,
            held_s=None if holder is None else held_s,
            remaining_s=None if holder is None else left_s,
            ahead=self.ahead,
        )


def lost(
    name: str | bytes, key: bytes, reply: bytes | list[Any], verb: str
) -> LeaseLost | KeyConflict:
    """The error for a lease that was not ours any more when it was ``verb``."""
    shown = display_name(name)
    if reply == b"already":
        return LeaseLost(
            f"the lease of lock {shown!r} was released or passed on before it was {verb}",
            name=shown,
            given_up=True,
        )
    if isinstance(reply, bytes):
        return LeaseLost(
            f"the lease of lock {shown!r} had ended before it was {verb}; nobody has the lock",
            name=shown,
        )
    if reply[0] != b"held":
        return conflict(key)
    holder, _ = split_about(reply[1])
    return LeaseLost(
        f"the lease of lock {shown!r} had ended before it was {verb}; {holder} has the lock now",
        name=shown,
        holder=holder,
    )

"""Turn replies of the server into results and errors.

An error says what could not be done, why, and what the caller can do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lualock._core.keys import display_name
from lualock._core.options import split_holder_info
from lualock.errors import KeyConflict, LeaseLost, NotAcquired


@dataclass(frozen=True, slots=True)
class LockInfo:
    """The state of a lock, as the server reported it. All times in seconds.

    ``held`` is false for a free lock; all other fields but ``waiters`` are empty then.
    ``remaining_s`` is ``None`` for a lock whose expiry was removed by hand: it never expires.
    ``waiters`` is the number of callers in the queue.
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
    """Convert a reply to PTTL into seconds; ``None`` if the key does not expire."""
    return None if ttl_ms < 0 else ttl_ms / 1000


def conflict(key: bytes) -> KeyConflict:
    """Make the error for a key that does not hold a lock."""
    return KeyConflict(
        f"could not use key {display_name(key)!r}: it holds something that lualock did not write "
        "(nothing was changed). Delete the key, or choose another name or prefix for the lock"
    )


def duration(duration_s: float) -> str:
    """Format a duration for messages."""
    return f"{duration_s:.1f} s" if duration_s >= 1 else f"{duration_s * 1000:.0f} ms"


@dataclass(slots=True)
class Held:
    """A lock that another holder has: the server's report, and when it arrived (``at``)."""

    ttl_ms: int
    held_ms: int
    holder_info: bytes
    at: float
    ahead: int | None = None

    def refusal(
        self,
        name: str | bytes,
        now: float,
        kind: type[NotAcquired],
        *,
        wait_s: float | None = None,
        max_waiters: int = 0,
    ) -> NotAcquired:
        """Make the error for a caller that did not get the lock.

        :param wait_s: how long the caller wanted to wait.
        :param max_waiters: the limit that the queue has reached; 0: it has not.
        """
        shown, state = display_name(name), self._state(now)
        holder = self._holder()[0]
        if max_waiters:
            text = (
                f"could not wait for lock {shown!r}: its queue is full ({self.ahead} waiting, "
                f"max_waiters={max_waiters}); {state}. Try again later, or raise max_waiters"
            )
        else:
            within = f" within {wait_s:g} s" if wait_s else ""
            text = f"could not acquire lock {shown!r}{within}: {self.describe(now)}"
        return kind(
            text,
            name=shown,
            holder=holder,
            held_s=None if holder is None else self._held_s(now),
            remaining_s=None if holder is None else self._left_s(now),
            ahead=self.ahead,
        )

    def describe(self, now: float) -> str:
        """Return which holder has the lock, since when, and how many waiters are ahead."""
        if self.ahead is None:
            return self._state(now)
        waiters = {0: "no waiter is", 1: "1 waiter is"}
        return f"{self._state(now)}; {waiters.get(self.ahead, f'{self.ahead} waiters are')} ahead"

    def _state(self, now: float) -> str:
        holder, metadata = self._holder()
        if holder is None:
            return "it was just released and the next waiter has priority"
        purpose = f' ("{display_name(metadata)}")' if metadata else ""
        left_s = self._left_s(now)
        end = "never expires"
        if left_s is not None:
            end = f"expires in {duration(left_s)} unless renewed"
        return f"held by {holder}{purpose} for {duration(self._held_s(now))}; its lease {end}"

    def _holder(self) -> tuple[str | None, str]:
        return split_holder_info(self.holder_info) if self.holder_info else (None, "")

    def _held_s(self, now: float) -> float:
        return self.held_ms / 1000 + now - self.at

    def _left_s(self, now: float) -> float | None:
        left_s = seconds(self.ttl_ms)
        return None if left_s is None else max(0.0, left_s - (now - self.at))


_ADVICE = {
    "adopted": "Acquire the lock instead",
    "extended": "Stop the work, or acquire the lock again",
    "kept": "The next attempt has to acquire the lock again",
    "released": "Check the work done since then: the lock did not protect it",
}
"""What the caller can do when its lease has ended before that was done to it."""


def lost(
    name: str | bytes, key: bytes, reply: bytes | list[Any], verb: str
) -> LeaseLost | KeyConflict:
    """Make the error for a lease that had ended before it was ``verb``."""
    shown = display_name(name)
    if reply == b"already":
        return LeaseLost(
            f"lease on {shown!r} was released or passed on before it was {verb}. {_ADVICE[verb]}",
            name=shown,
            given_up=True,
        )
    holder = None
    state = "the lock is now free"
    if not isinstance(reply, bytes):
        if reply[0] != b"held":
            return conflict(key)
        holder, _ = split_holder_info(reply[1])
        state = f"{holder} holds the lock now"
    return LeaseLost(
        f"lease on {shown!r} expired, or was ended by force, before it was {verb}; {state}. "
        f"{_ADVICE[verb]}",
        name=shown,
        holder=holder,
    )

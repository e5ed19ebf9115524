"""What workers do: the locks, and how an acquisition of one is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

LOCKS = ("a", "b", "c", "d", "e", "priority")
MAX_WAITERS = {"e": 6}
DEFAULT_TTL_S = 2.0
"""The default ttl: short, because a killed process holds its lock until its ttl ends."""

ENDINGS = ("release",) * 9 + ("with",) * 5 + ("extend",) * 2 + ("pass", "forget")


@dataclass(frozen=True)
class Turn:
    """One acquisition, and what is done with the lease."""

    lock: str
    ttl_s: float | None  # None: the default, which is renewed
    renew: bool | None
    wait_s: float | None  # None: for ever, 0: try_acquire
    priority: int
    idle_s: float
    hold_s: float
    ending: str
    new: bool
    """Whether it has its own lock object, with the acquisition's id as metadata, so that the
    observer recognises it in the queue. If not, it uses a shared one, which remembers whether it
    waited."""

    @property
    def renewed(self) -> bool:
        return self.ttl_s is None if self.renew is None else self.renew


def draw(chance: Random) -> Turn:
    """Draw a turn."""
    lock = chance.choice(LOCKS)
    ttl_s, renew = chance.choice(
        (
            (None, None),
            (None, None),
            (0.5, True),
            (1.0, True),
            (0.4, None),
            (1.0, None),
            (2.0, None),
        )
    )
    hold_s = chance.choice((0.0, 0.01, 0.02, 0.05, 0.1)) * chance.random() * 2
    if chance.random() < 0.05:
        hold_s = 0.7  # longer than some ttls: renewed, or lost
    ending = chance.choice(ENDINGS)
    if ending == "forget" and (ttl_s is None or renew):
        ending = "release"  # no process could record when such a lease ends
    return Turn(
        lock=lock,
        ttl_s=ttl_s,
        renew=renew,
        wait_s=chance.choice((None, None, None, 0, 0.05, 0.5, 2.0, 2.0)),
        priority=chance.choice((0, 0, 5, -5)) if lock == "priority" else 0,
        idle_s=chance.random() * chance.choice((0.01, 0.1, 0.5)),
        hold_s=hold_s,
        ending=ending,
        new=chance.random() < 0.6,
    )


def calm(lock: str) -> Turn:
    """Return the turn of every worker in the calm, when nothing is excused."""
    return Turn(lock, 10.0, True, None, 0, 0.0, 0.001, "release", new=True)

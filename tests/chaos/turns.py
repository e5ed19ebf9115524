"""What workers do: which locks there are, and what one acquisition of them is like."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

FAIR = ("a", "b", "c", "d", "e", "priority")
UNFAIR = ("unfair", "rough")
LOCKS = FAIR + UNFAIR
MAX_WAITERS = {"e": 6}
DEFAULT_TTL_S = 2.0
"""Of leases that do not say: short, for a lock of a killed process is held until its ttl ends."""

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
    """With a lock object of its own, which carries the acquisition's id, so that the observer knows
    it in the queue; else with one that was used before, and remembers whether it had to wait."""

    @property
    def renewed(self) -> bool:
        return self.ttl_s is None if self.renew is None else self.renew


def draw(chance: Random) -> Turn:
    """Any of them."""
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
        hold_s = 0.7  # longer than some ttls: renewed, or found lost
    ending = chance.choice(ENDINGS)
    if ending == "forget" and (ttl_s is None or renew):
        ending = "release"  # when the lease ends by itself nobody could tell
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
    """What every worker does at the end, when nothing excuses anything any more."""
    return Turn(lock, 10.0, True, None, 0, 0.0, 0.001, "release", new=True)

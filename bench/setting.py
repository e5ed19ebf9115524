"""What a run of the benchmark works with: a server, the rivals that work here, and the time.

Nothing here or in a scenario sets a number of rounds: a scenario has so many seconds
(``scenarios.SECONDS``), and rounds are measured until they are used.

"""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TypeVar

from bench.server import Server

T = TypeVar("T")

Targets = list[tuple[str, float, bool]]
LEAST, QUICK_LEAST, MOST = 3, 1, 25  # rounds
FOLDERS = re.compile(r"(?<!\w)/(?:[\w.-]+/)+")
ROUND_LIMIT_S = 60.0  # for one way in one round; a slower one counts as hanging


@dataclass(frozen=True)
class Broken:
    """A rival that failed, where, and its error."""

    rival: str
    scenario: str
    error: str


@dataclass
class Setting:
    """``sync`` and ``tasks`` are the rivals to measure, by name; ``budget_s`` is the time of the
    scenario, ``counted`` the numbers of rounds of its ways, for the report."""

    server: Server
    quick: bool
    sync: list[str]
    tasks: list[str]
    budget_s: float = 0.0
    counted: list[int] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    shuffled: random.Random = field(default_factory=lambda: random.Random(1))

    @property
    def least(self) -> int:
        """The minimum number of rounds, however long they take."""
        return QUICK_LEAST if self.quick else LEAST

    def rounds(
        self,
        where: str,
        ways: Mapping[str, Callable[[], T]],
        *,
        share: float = 1.0,
        least: int | None = None,
    ) -> dict[str, list[T]]:
        """Measure every way, round after round, in a new order each time.

        So other load on the machine meets all ways. All have the same time (``share``: of the
        scenario's), so a slow one has fewer rounds than a fast one. A way that breaks is recorded,
        and not measured again.
        """
        part_s = self.budget_s * share / max(1, len(ways))
        found: dict[str, list[T]] = {name: [] for name in ways}
        used_s = dict.fromkeys(ways, 0.0)
        left = list(ways)
        for number in range(1, MOST + 1):
            for name in self.shuffled.sample(left, len(left)):
                began = time.monotonic()
                try:
                    with limited(ROUND_LIMIT_S):
                        found[name].append(ways[name]())
                except Exception as error:
                    self.breaks(name, where, error)
                    del found[name]
                used_s[name] += time.monotonic() - began
            must = number < (self.least if least is None else least)
            left = [
                name
                for name in left
                if name in found and (must or used_s[name] * (number + 1) / number <= part_s)
            ]
        self.counted += map(len, found.values())
        return found

    def breaks(self, rival: str, scenario: str, error: BaseException | str) -> None:
        """Record that a rival broke; raise if it is lualock."""
        if rival.startswith("lualock"):
            raise RuntimeError(f"{rival} broke in {scenario}: {error!r}")
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        text = FOLDERS.sub("", " ".join(text.split()))  # the report names no place of the machine
        broken = Broken(rival, scenario, text[:300])
        if broken not in self.broken:
            self.broken.append(broken)


@contextmanager
def limited(limit_s: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after a time limit."""

    def over(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"it was not done after {limit_s:.0f} s")

    previous_handler = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)


def within(limit_s: float, done: Callable[[], bool], what: str) -> None:
    """Wait until something is done; raise TimeoutError after a time limit."""
    give_up = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what}: not after {limit_s:.1f} s")
        time.sleep(0.002)

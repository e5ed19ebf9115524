"""Measure what each rule of the schedule pays: ``python -m tests.simulation schedule``.

The rules are those of ``lualock/_protocol/schedule.py``. Each figure is measured as shipped, then
without each rule in turn, and with rules that a schedule might have too. Less is better in all of
them. No clock is read, so a figure is the same on every machine.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any
from unittest import mock

from lualock._core.options import DEFAULT_TTL_S
from lualock._protocol import RunScript, attempt, schedule
from lualock.scripts import SCRIPTS
from tests.simulation.clients import Client, Lock, Renewal, Turn
from tests.simulation.network import Process
from tests.simulation.world import EPOCH_US, US, Server, World

PAYS = 1.1
"""A rule pays if a figure without it is that many times the figure as shipped."""

SEEDS = 10
FOR_EVER_S = 1e6
Figures = dict[str, float]


class Scene:
    """One lock and its clients, each in a process of its own, and a count of the server's work."""

    def __init__(self, seed: int, server: Server) -> None:
        self.world = World(seed, server)
        self.draw = self.world.random.random
        self.scripts = self.messages = 0
        self.checks: list[int] = []  # when a waiter checked the queue
        self.clients: list[Client] = []
        self.lock = Lock("a", b"0")
        server.after_script = self._count

    def _count(self, call: RunScript, reply: Any) -> None:
        self.scripts += 1
        self.messages += len(self.world.server.messages)
        if call.script is SCRIPTS["wait"]:
            self.checks.append(self.world.now)

    def add(
        self,
        name: str,
        at_s: float = 0.0,
        *,
        hold_s: float = 0.001,
        ttl_s: float = DEFAULT_TTL_S,
        renew: bool = True,
        turns: int = 1,
    ) -> Client:
        """Add a client that takes the lock from that time on."""
        process = Process(self.world, name, threads=True)
        client = Client(process, name, Renewal(process))
        for number in range(turns):
            idle_s = 0.0 if number else at_s
            ttl_ms = int(ttl_s * 1000)
            turn = Turn(self.lock, idle_s, None, ttl_ms, hold_s, 0, renew, True, "release")
            client.turns.append(turn)
        client.task = process.start(client.life())
        self.clients.append(client)
        return client

    def crowd(self, count: int) -> list[Client]:
        """Add waiters that come during the second second, the first one first."""
        return [self.add(f"w{number}", 1 + number / count) for number in range(count)]

    def run(self, until_s: float) -> None:
        """Let time pass, in short steps, because a world limits the events of each."""
        until = int(until_s * US)
        while self.world.now < until:
            step = min(until, self.world.now + US // 10)
            self.world.run(step)
            self.world.now = step

    def checks_of(self, start_s: float, end_s: float) -> list[int]:
        """Return when waiters check the queue during that time."""
        self.run(start_s)
        self.checks.clear()
        self.run(end_s)
        return self.checks

    def lease_end_s(self) -> float:
        """Return when the lease ends at the server."""
        end_ms = self.world.server.store.ends[self.lock.key]
        return ((end_ms + 1) * 1000 - EPOCH_US) / US

    def next_holder_ms(self, after_s: float) -> float:
        """Return how long after that time a client gets the lock."""
        while True:
            for event in self.world.history:
                if event.kind == "got" and event.t > after_s:
                    return 1000 * (event.t - after_s)
            self.run(self.world.t + 1)


def keep(waiters: int, ttl_s: float, scene: Scene) -> Figures:
    """Let a holder keep the lock and renew its lease: only the waiters' checks are counted."""
    scene.add("holder", hold_s=FOR_EVER_S, ttl_s=ttl_s)
    scene.crowd(waiters)
    return {"scripts a second": len(scene.checks_of(130, 250)) / 120}


def reconnect(waiters: int, scene: Scene) -> Figures:
    """Break all connections for messages at once, so that all waiters check at once."""
    scene.add("holder", hold_s=FOR_EVER_S)
    crowd = scene.crowd(waiters)
    scene.run(60)
    for client in crowd:
        client.process.resubscribe()
    together = Counter(at // (US // 10) for at in scene.checks_of(70, 190))
    return {"most scripts in 0.1 s": max(together.values())}


def die(dead: int, gone: bool, scene: Scene) -> Figures:
    """Let a holder die together with the first waiters.

    ``gone``: the server has closed their connections. Otherwise it still counts them as reached.
    """
    holder = scene.add("holder", hold_s=FOR_EVER_S)
    waiters = scene.crowd(dead + 10)
    scene.run(100 + DEFAULT_TTL_S * scene.draw())
    for client in (holder, *waiters[:dead]):
        client.process.crash()
        connection = client.process.subscriber.connection
        if gone and connection is not None:
            connection.broken()
    scene.run(scene.world.t + 0.1)  # a renewal may be on its way
    return {"ms from the end of the lease": scene.next_holder_ms(scene.lease_end_s())}


def die_early(scene: Scene) -> Figures:
    """Let a holder with a short lease die at once, behind which a waiter has just come."""
    release_s = 20 + scene.draw()
    scene.add("holder", hold_s=release_s)
    short = scene.add("short", 1.0, ttl_s=1.0, hold_s=FOR_EVER_S, renew=False)
    scene.add("young", release_s - 0.05 * scene.draw())
    scene.run(release_s + 0.01)
    short.process.crash()
    scene.run(scene.world.t + 0.01)
    return {"ms from the end of the lease": scene.next_holder_ms(scene.lease_end_s())}


def lose(deaf: int, waiters: int, ttl_s: float, scene: Scene) -> Figures:
    """Let a holder release the lock while the first waiters get no message."""
    release_s = 100 + DEFAULT_TTL_S * scene.draw()
    scene.add("holder", hold_s=release_s, ttl_s=ttl_s)
    crowd = scene.crowd(waiters)
    scene.run(release_s - 0.1)
    for client in crowd[:deaf]:
        connection = client.process.subscriber.connection
        assert connection is not None
        connection.open = False
    return {"ms from the release": scene.next_holder_ms(release_s)}


def delete(dead: int, scene: Scene) -> Figures:
    """Let an operator delete the key of a lock. Of its waiters, all but the last one are dead, and
    the server still counts them as reached."""
    scene.add("holder", hold_s=FOR_EVER_S, ttl_s=3600.0)
    waiters = scene.crowd(dead + 1)
    deleted_s = 100 + DEFAULT_TTL_S * scene.draw()
    scene.run(deleted_s - 0.1)
    for client in waiters[:dead]:
        client.process.crash()
    scene.run(deleted_s)
    scene.world.server.store.delete(scene.lock.key)
    return {"ms from the deletion": scene.next_holder_ms(deleted_s)}


def contend(hold_s: float, scene: Scene) -> Figures:
    """Let 32 clients take the lock in turn."""
    turns = 40
    for number in range(32):
        scene.add(f"c{number}", number / 1000, hold_s=hold_s, turns=turns, renew=False)
    while not all(client.done for client in scene.clients):
        scene.run(scene.world.t + 1)
    history = scene.world.history
    began = {event.id: event.t for event in history if event.kind == "acquire"}
    waits = [event.t - began[event.id] for event in history if event.kind == "got"]
    return {
        "scripts an acquisition": scene.scripts / len(waits),
        "messages an acquisition": scene.messages / len(waits),
        "ms of waiting": 1000 * mean(waits),
    }


SCENARIOS: dict[str, tuple[Callable[[Scene], Figures], int]] = {
    **{f"{count} wait": (partial(keep, count, DEFAULT_TTL_S), 1) for count in (1, 10, 100, 1000)},
    **{f"{count} wait, ttl 1 s": (partial(keep, count, 1.0), 1) for count in (10, 100)},
    "1000 wait, reconnected together": (partial(reconnect, 1000), 1),
    "the holder dies": (partial(die, 0, True), SEEDS),
    **{
        f"the holder and {count} waiters die": (partial(die, count, True), SEEDS)
        for count in (1, 2, 5, 20)
    },
    **{
        f"the holder and {count} half-open waiters die": (partial(die, count, False), SEEDS)
        for count in (1, 2, 5)
    },
    "a holder dies early": (die_early, SEEDS),
    "1 of 10 gets no message": (partial(lose, 1, 10, DEFAULT_TTL_S), SEEDS),
    "2 of 10 get no message": (partial(lose, 2, 10, DEFAULT_TTL_S), SEEDS),
    "1 of 1 gets no message, ttl 1 h": (partial(lose, 1, 1, 3600.0), SEEDS),
    **{
        f"the key is deleted, {count} half-open waiters and one": (partial(delete, count), SEEDS)
        for count in (0, 1, 20)
    },
    "32 clients hold for 1 ms": (partial(contend, 0.001), 1),
    "32 clients hold for 10 ms": (partial(contend, 0.01), 1),
}
"""Each scenario, and how many seeds its figures are the means of."""


def with_more_rules(
    ahead: int,
    lease_left_s: float | None,
    young_left_s: float,
    *,
    apart_s: float = 0.0,
    near: int = 0,
    doubles: bool = False,
) -> float:
    """Return what ``next_check_s`` returns, by a schedule with more rules.

    ``apart_s``: the time between the checks of two waiters at the end of a lease. ``near``: how
    many waiters check at most each second. ``doubles``: with each waiter ahead the upper limit
    doubles.
    """
    check_s = schedule.CHECK_MAX_S
    if lease_left_s is not None:
        check_s = max(0.0, lease_left_s) + schedule.CHECK_LATE_S + apart_s * ahead
    if ahead == 0:
        check_s = min(check_s, schedule.CHECK_HEAD_S)
    else:
        least_s = 1.0 if ahead < near else schedule.CHECK_LEAST_S * ahead
        most_s = schedule.CHECK_MOST_S * (2 ** min(ahead - 1, 8) if doubles else ahead)
        check_s = min(max(check_s, least_s), most_s)
    if young_left_s > 0:
        check_s = min(check_s, young_left_s)
    return min(check_s, schedule.CHECK_MAX_S - ahead % schedule.CHECK_GROUPS)


READERS = (schedule, attempt, sys.modules["lualock._protocol.wait"])
"""The modules that read the constants."""


@dataclass
class Variant:
    """The library with other rules: changed constants, Lua, or schedule."""

    constants: dict[str, float] = field(default_factory=dict)
    lua: tuple[str, str] = ("", "")
    next_check_s: Callable[[int, float | None, float], float] = schedule.next_check_s

    def figures(self, titles: Iterable[str]) -> Figures:
        """Return the figures of these scenarios, in the library with these rules."""
        server, found = Server(), {}
        shipped, changed = (text.encode() for text in self.lua)
        for script in SCRIPTS.values():
            server.sources[script.source] = script.source.replace(shipped, changed)
        with ExitStack() as changes:
            changes.enter_context(mock.patch.object(attempt, "next_check_s", self.next_check_s))
            for name, value in self.constants.items():
                for module in READERS:
                    if name in vars(module):
                        changes.enter_context(mock.patch.object(module, name, value))
            for title in titles:
                measure, seeds = SCENARIOS[title]
                runs = [measure(Scene(seed, server)) for seed in range(seeds)]
                for figure in runs[0]:
                    found[f"{title}: {figure}"] = mean(run[figure] for run in runs)
        return found


SHIPPED = "as shipped"
VARIANTS = {
    SHIPPED: Variant(),
    "no CLAIM_MS": Variant({"CLAIM_MS": math.inf}, ("CLAIM_MS = 2500", "CLAIM_MS = 1e12")),
    "no CHECK_LATE_S": Variant({"CHECK_LATE_S": 0.0}),
    "no CHECK_HEAD_S": Variant({"CHECK_HEAD_S": math.inf}),
    "no CHECK_LEAST_S": Variant({"CHECK_LEAST_S": 0.0}),
    "no CHECK_MOST_S": Variant({"CHECK_MOST_S": math.inf}),
    "no CHECK_MAX_S": Variant({"CHECK_MAX_S": math.inf}),
    "no CHECK_GROUPS": Variant({"CHECK_GROUPS": 1}),
    "no YOUNG_S": Variant({"YOUNG_S": 0.0}),
    "nor YOUNG_TICKS": Variant({"YOUNG_S": 0.0}, ("YOUNG_TICKS = 600", "YOUNG_TICKS = 0")),
    "5 ms apart": Variant(next_check_s=partial(with_more_rules, apart_s=0.005)),
    "8 near": Variant(next_check_s=partial(with_more_rules, near=8)),
    "doubling": Variant(next_check_s=partial(with_more_rules, doubles=True)),
    "these three": Variant(
        next_check_s=partial(with_more_rules, apart_s=0.005, near=8, doubles=True)
    ),
}


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def main() -> int:
    """Print the figures as a table; those that are more than 10 % worse than shipped are bold."""
    columns = {}
    for title, variant in VARIANTS.items():
        columns[title] = variant.figures(SCENARIOS)
        print(title, file=sys.stderr, flush=True)
    print("| | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for figure, shipped in columns[SHIPPED].items():
        found = [column[figure] for column in columns.values()]
        cells = [f"**{_short(one)}**" if one > PAYS * shipped else _short(one) for one in found]
        print(f"| {figure} | " + " | ".join(cells) + " |")
    return 0

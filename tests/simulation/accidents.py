"""A few clients, much time, and rarely one accident, with no other fault near it.

If many faults come together, each excuses much of what the others do, and few requests meet a fault
at the moment that matters. Here one request is late or lost, or its reply is, or messages are
delayed; often the caller gives up meanwhile. Nothing excuses what an accident leaves behind.

In runs of *silence* several requests, each some seconds after the previous one, meet a connection
that is silently dead, or slow. They are sent again on another connection, and their first copy may
arrive long after the caller has its reply.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.simulation import jobs
from tests.simulation.clients import Client, Lock, Renewal, Turn
from tests.simulation.jobs import Queue
from tests.simulation.network import Process
from tests.simulation.world import US, World

FATES = (
    *("slow", "slow", "slow", "no_reply", "no_reply", "no_reply"),
    *("silent", "late", "lost", "reply_lost"),
)
"""What may become of a request: see ``connections.Link.carry``."""

SILENCE = ("slow", "no_reply")


class Accidents:
    """Causes the accidents of one world."""

    def __init__(
        self, world: World, clients: Sequence[Client], lasts_s: float, *, silence: bool
    ) -> None:
        self._world, self._clients, self._silence = world, clients, silence
        world.fate = self._fate
        chance = world.random
        for _ in range(chance.choice((3, 5, 8) if silence else (1, 2, 3, 4))):
            world.at(int(chance.random() * lasts_s * US), self._strike)

    def _strike(self) -> None:
        """Let the next request of any client meet a fault, or delay one client's messages, or
        both."""
        chance, subscriber = (
            self._world.random,
            self._world.random.choice(self._clients).process.subscriber,
        )
        which = 0.0 if self._silence else chance.random()
        if which < 0.8 or subscriber.connection is None:
            self._world.flaky = 1.0
        if which > 0.5 and subscriber.connection is not None:
            subscriber.connection.stall(int(chance.random() * 8 * US))

    def _fate(self) -> str:
        world = self._world
        chance = world.random
        world.flaky = 0.0
        if chance.random() < (0.2 if self._silence else 0.6):
            world.after(int(chance.random() ** 3 * 3 * US) + 1, self._interrupt)
        return chance.choice(SILENCE if self._silence else FATES)

    def _interrupt(self) -> None:
        """Interrupt a client that still waits for a reply."""
        waiting = [client for client in self._clients if client.task and client.task.awaits_reply]
        if waiting:
            self._world.faults["interrupt"] += 1
            self._world.random.choice(waiting).interrupt()


def draw_accidents(world: World, *, silence: bool) -> tuple[list[Lock], list[Client], Queue | None]:
    """Draw the clients of a run, and what they do: they take one lock, or run jobs."""
    draw = world.random.random
    lock = Lock("a", b"0")
    processes = [Process(world, name, threads=draw() < 0.7) for name in ("p1", "p2", "p3")]
    renewals = [(process, Renewal(process)) for process in processes]
    if draw() < 0.3:
        producers, queue = jobs.draw_jobs(world, [lock], renewals, 0.0)
        Accidents(world, [*producers, *queue.workers], 5.0, silence=silence)
        return [lock], [*producers], queue
    draw()  # unused: it keeps what the seeds in ``REGRESSIONS`` draw
    clients = [
        Client(process, f"c{number}", renewal) for number, (process, renewal) in enumerate(renewals)
    ]
    choice = world.random.choice
    hold_s, rude = choice((0.02, 1.0, 4.0, 14.0)), choice((0.0, 0.2))
    ttl_ms = choice((100, 2000, 20_000, 20_000))
    if silence:
        hold_s = choice((0.02, 0.3, 1.0))
    for client in clients:
        client.adopters = clients
        client.turns += [
            Turn(
                lock=lock,
                idle_s=draw() * choice((0.01, 1, 3 if silence else 10)),
                wait_s=choice((None, None if silence else 0, draw() * 2, draw() * 2)),
                ttl_ms=ttl_ms,
                hold_s=hold_s * draw(),
                priority=0,
                renew=draw() < 0.3,
                careful=True,
                ending="release" if draw() >= rude else choice(("extend", "undo", "pass", "pass")),
            )
            for _ in range(6)
        ]
    Accidents(world, clients, 20.0 if silence else 60.0, silence=silence)
    return [lock], [*clients], None

"""Run one seed, from its drawing to its verdict."""

from __future__ import annotations

import gc
import logging
import re
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from unittest import mock

from lualock._core import lease
from tests.simulation import accidents
from tests.simulation.audit import Audit
from tests.simulation.checker import LOSSES, Event, Limits, Violation, check
from tests.simulation.clients import Client, Lock, Renewal, Turn, observe
from tests.simulation.faults import Faults
from tests.simulation.job_rules import check_jobs
from tests.simulation.jobs import Queue, draw_jobs
from tests.simulation.multi import MultiClient
from tests.simulation.network import Process
from tests.simulation.regressions import REGRESSIONS
from tests.simulation.world import US, Server, World

SETTLE_S = 10.0
ORPHAN_S = 3.0  # a little more than the longest pause of a clean-up
HORIZON_S, COLLECT_S = 3600, 200
ENDINGS = ("forget", "extend", "undo", "pass", "pass")
# A lease lasts longer on the server than its holder knows: by the time that its request took.
LIMITS = Limits(prompt_s=0.1, takeover_s=1.0, late_s=0.1, settle_s=SETTLE_S)


@dataclass
class Result:
    """The result of a seed, or of many."""

    seeds: int = 0
    scripts: int = 0
    acquired: int = 0
    waited: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    attributed: Counter[str] = field(default_factory=Counter)
    failing: list[tuple[int, list[Violation]]] = field(default_factory=list)
    probed: list[str] = field(default_factory=list)  # the violations that probes found
    trace: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Add another result."""
        self.seeds += other.seeds
        self.scripts += other.scripts
        self.acquired += other.acquired
        self.waited += other.waited
        self.faults += other.faults
        self.attributed += other.attributed
        self.failing += other.failing
        self.probed += other.probed


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn logging off: errors are expected in a run."""
    logs = [logging.getLogger(name) for name in ("lualock", "lualock.renewal", "lualock.jobs")]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled


def has_jobs(seed: int) -> bool:
    """Whether a run has jobs: one seed in five.

    The seeds in ``REGRESSIONS`` that are older than a kind of run are not of that kind, so that
    they still draw the same. This holds for the kinds below, too.
    """
    return seed % 10 in (2, 3)


def has_accidents(seed: int) -> bool:
    """Whether a run is one of ``accidents``: one seed in twenty."""
    return seed % 20 == 18


def has_silence(seed: int) -> bool:
    """Whether all accidents of a run are silent connections: one seed in twenty."""
    return seed % 20 == 8


def has_astray(seed: int) -> bool:
    """Whether subscribers may stay with an earlier primary: one seed in twenty."""
    return seed % 20 == 14


def has_streams(seed: int) -> bool:
    """Whether replies are crossed, writes torn, and processes forked by C code: one seed in
    four."""
    return seed % 20 in (1, 2, 5, 7, 10)


def has_multi(seed: int) -> bool:
    """Whether some clients of a run take several locks as one lease."""
    return seed % 40 in (11, 24, 39)


def has_operator(seed: int) -> bool:
    """Whether an operator ends leases by force: one seed in twenty."""
    return seed % 40 in (5, 21)


KINDS = (
    *(has_jobs, has_accidents, has_silence, has_astray, has_streams, has_multi),
    has_operator,
)


def free_residues(modulus: int) -> dict[int, list[str]]:
    """Return the residues that no seed of ``REGRESSIONS`` has, each with the kinds of its runs.

    A new kind of run takes some, so that the old seeds still draw the same.

    :param modulus: a multiple of 40, at which the kinds repeat.
    """
    taken = {seed % modulus for seed in REGRESSIONS}
    return {
        residue: [kind.__name__ for kind in KINDS if kind(residue)]
        for residue in range(modulus)
        if residue not in taken
    }


def play(seed: int, server: Server, *, trace: bool = False) -> Result:
    """Run one seed on a server that may have run other seeds."""
    world = World(seed, server, trace=trace)
    before = server.lua.runs
    if has_accidents(seed) or has_silence(seed):
        locks, clients, queue = accidents.draw_accidents(world, silence=has_silence(seed))
    else:
        locks, clients, queue = _draw_run(
            *(world, has_multi(seed)),
            jobs=has_jobs(seed),
            astray=has_astray(seed),
            streams=has_streams(seed),
            operator=has_operator(seed),
        )
    audit = Audit(world)
    kept = ((b"kept%d" % number).ljust(22, b".") for number in count())  # for locks that stay held
    with _quiet(), mock.patch.object(lease, "new_token", kept.__next__):
        for client in clients:
            client.task = client.process.start(client.life())
        try:
            world.run(COLLECT_S * US)
            if not world.still:
                gc.collect()  # a lease in a reference cycle is renewed until it is collected
                world.run(HORIZON_S * US)
        except Exception as error:  # a protocol must not raise any other error
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
            world.wrong("error", text)
    _after(world, locks, clients, queue)
    audit.finish(ORPHAN_S)
    verdict = check(world.history, LIMITS)
    found = world.found + verdict.violations
    if queue is not None:
        found += check_jobs(world.history)
    violations = sorted(found, key=lambda one: one.t)
    return Result(
        seeds=1,
        scripts=server.lua.runs - before,
        acquired=verdict.held,
        waited=verdict.waited,
        faults=world.faults,
        attributed=verdict.attributed,
        failing=[(seed, violations)] if violations else [],
        trace=world.trace or [],
    )


def _draw_run(
    world: World, multi: bool, *, jobs: bool, astray: bool, streams: bool, operator: bool
) -> tuple[list[Lock], list[Client], Queue | None]:
    """Draw the clients of a run, what they do, and its faults."""
    chance = world.random
    draw, choice = chance.random, chance.choice
    draw()  # unused: it keeps what the seeds in ``REGRESSIONS`` draw
    limit = b"%d" % choice((1, 2, 2, 3)) if draw() < 0.25 else b"0"
    locks = [Lock(name, limit) for name in ("a", "b")[: choice((1, 1, 1, 2))]]
    processes = [
        Process(world, f"p{number}", threads=draw() < 0.5)
        for number in range(1, choice((2, 3, 3, 4, 5)))
    ]
    renewals = [(process, Renewal(process)) for process in processes]
    clients: list[Client] = []
    for number in range(1, choice((1, 2, 3) if jobs else (3, 4, 5, 6, 8))):
        process, renewal = choice(renewals)
        clients.append(Client(process, f"c{number}", renewal))
    if multi:
        locks = [Lock(name, limit) for name in ("a", "b", "c")[: choice((2, 2, 3))]]
        for number in range(1, choice((2, 3, 4))):
            chosen = chance.sample(locks, choice((2, len(locks))))
            process, renewal = choice(renewals)
            clients.append(MultiClient(process, f"m{number}", renewal, chosen))
    for client in clients:
        client.adopters = [one for one in clients if not isinstance(one, MultiClient)]
    calm = 0
    if draw() < 0.8:
        calm = int((2 + draw() * 10) * US)
    queue = None
    all_clients, targets, targeted_locks = clients, clients, locks
    if jobs:
        producers, queue = draw_jobs(
            world, locks, renewals, calm / US + SETTLE_S + 1 if calm else 0
        )
        all_clients = [*clients, *producers]
        targets = [*all_clients, *queue.workers]
        targeted_locks = [*locks, *(lock.reservation() for lock in locks)]
    if calm:
        faults = Faults(world, processes, targets, targeted_locks)
        faults.plan(calm, deaths=limit != b"0", astray=astray)
    world.latency_us = choice((1, 50, 150, 1000))
    if draw() < 0.1 and calm == 0:
        world.server.grain_us = 1000
    priorities = (0, 0, 1) if draw() < 0.25 else (0,)
    hold_s = choice((0.0, 0.01, 0.1, 0.5, 1.0))
    ttls = choice(((300, 1000), (1000, 5000), (3000, 10000), (50, 30000)))
    rude = choice((0.0, 0.0, 0.1, 0.5))  # the share of turns that do not end with a plain release

    def drawn() -> Turn:
        return Turn(
            lock=choice(locks),
            idle_s=draw() ** 2 * choice((0.001, 0.1, 1.0)) * 2,
            wait_s=choice((None, None, None, 0, draw() * 3, draw() * 0.2)),
            ttl_ms=choice(ttls),
            hold_s=hold_s * draw() * 2,
            priority=choice(priorities),
            renew=draw() < 0.4,
            careful=draw() < 0.7,
            ending="release" if draw() >= rude else choice(ENDINGS),
        )

    def forked(child: Process) -> None:
        renewal = Renewal(child)
        for number in range(choice((1, 2, 3))):
            client = Client(child, f"{child.name}c{number}", renewal)
            client.adopters = clients
            client.turns = [drawn() for _ in range(choice((2, 3, 4)))]
            client.turns[0].idle_s = 0.0
            clients.append(client)
            if all_clients is not clients:
                all_clients.append(client)
            client.task = child.start(client.life())

    for client in clients:
        client.turns += [drawn() for _ in range(choice((1, 2, 3, 4)))]
        # The same once more in the calm, when nothing is excused.
        if calm:
            client.calm_at_s = calm / US + SETTLE_S + 1
            client.calm_turns = [
                Turn(
                    choice(locks), draw() * 0.2, None, 5000, draw() * 0.1, 0, False, True, "release"
                )
                for _ in range(choice((0, 1, 2)))
            ]
    if draw() < 0.1:
        for client in clients:
            for turn in client.turns:
                turn.ending = choice(("pass", "pass", turn.ending))
    if operator:
        for client in clients:
            for turn in client.turns:
                turn.ending = choice(("keep", turn.ending, turn.ending))
    if calm and streams:
        faults.plan_streams(calm, forked)
    if calm and operator:
        faults.plan_operator(calm)
    if draw() < 0.3:
        processes[0].start(observe(locks, processes[0], 4))
    return locks, all_clients, queue


def _after(world: World, locks: list[Lock], clients: list[Client], queue: Queue | None) -> None:
    """Check after the end of all clients that nothing is left."""
    server = world.server
    world.record("end")
    if not world.still:
        world.wrong("ends", f"after {HORIZON_S} s the run has not ended")
    for client in clients:
        if not client.done and not client.process.dead:
            world.wrong("ends", f"{client.name} never finished")
    for text in queue.unfinished() if queue is not None else ():
        world.wrong("ends", text)
    alive = {
        client.name
        for client in (*clients, *(queue.workers if queue is not None else ()))
        if not client.process.dead
    }
    server.tick()
    losses = {event.lock for event in world.history if event.what in LOSSES}
    for lock in locks:
        if losses & {"", lock.name}:
            continue  # a replica may bring back entries that no client cleans up
        queue = server.store.data.get(lock.queue)
        for ticket in queue.scores if queue is not None and not isinstance(queue, bytes) else ():
            if ticket[:22] in world.let_in:
                continue  # the first message to it drops it
            if re.split("[.-]", ticket[:22].decode())[0] in alive:
                world.history.append(Event(world.t, "left", what=f"the ticket {ticket!r}"))
    world.now += 3600 * US
    server.tick()
    for key in server.store.data:
        world.history.append(Event(world.t, "left", what=f"the key {key!r}"))

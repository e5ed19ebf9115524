"""One round of chaos: a server, its workers, the faults, the calm after them, and the verdict."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from lualock._core.clock import now
from tests.chaos.event_log import SUFFIX, EventLog, read_all
from tests.chaos.injector import FaultInjector
from tests.chaos.observer import CONFIG, Observer
from tests.chaos.worker import CALM, KINDS, Task
from tests.chaos.workers import Workers
from tests.simulation.checker import Limits, Verdict, Violation, check
from tests.support.servers import INSTALLED, Server

LIMITS = Limits(prompt_s=2.0, takeover_s=2.0, late_s=1.0)
"""Dozens of processes share the cores; a stuck process is late by far more than that."""

START_S = 60.0
"""Within what time all workers must start."""

CALM_S = 15.0
"""Within what time all workers must finish in the calm. A dead worker's lease ends within 3 s, and
a lock that was granted to it is free within 2.5; a waiter that waits longer was forgotten."""

LEFT_S = 12.0
"""After what time no key may be left: a tombstone lives for 5 s, the longest short lease for 3."""


@dataclass
class Outcome:
    """The result of a round."""

    folder: Path
    acts: Counter[str] = field(default_factory=Counter)
    held: int = 0
    handed_over: int = 0
    attributed: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    calm_s: float = 0.0
    """How long after the last fault all workers had finished."""


@dataclass(frozen=True)
class Plan:
    """The parameters of a round."""

    server: str
    seconds: float
    seed: int
    processes: int
    fault: str = ""
    kinds: Sequence[str] = KINDS


def play(plan: Plan) -> Outcome:
    """Play a round; keep the event logs if there is a violation."""
    folder = Path(tempfile.mkdtemp(prefix="lualock-chaos-"))
    found = Outcome(folder)
    steady = Server("steady", INSTALLED[plan.server])
    try:
        server = Server(plan.server, INSTALLED[plan.server], CONFIG)
        try:
            _contend(plan, found, server, steady)
        finally:
            server.close()
    finally:
        steady.close()
    outcome = judge(folder)
    outcome.acts, outcome.calm_s = found.acts, found.calm_s
    outcome.violations += found.violations
    if not outcome.violations:
        shutil.rmtree(folder)
    return outcome


def judge(folder: Path) -> Outcome:
    """Return the checker's verdict on the event logs in a folder."""
    events = list(read_all(folder))
    verdict: Verdict = check(events, LIMITS)
    queued = {event.id for event in events if event.kind == "queued"}
    handed_over = sum(event.kind == "got" and event.id in queued for event in events)
    attributed, violations = verdict.attributed, verdict.violations
    return Outcome(folder, Counter(), verdict.held, handed_over, attributed, violations)


def _contend(plan: Plan, found: Outcome, server: Server, steady: Server) -> None:
    folder = found.folder
    log = EventLog(folder, "injector")
    task = Task(
        name="",
        folder=str(folder),
        url="",
        steady_url=f"{steady.url}?socket_timeout=30",
        seed=plan.seed,
        workers=0,
        kind="",
        fault=plan.fault,
    )
    chance = Random(plan.seed)
    urls = f"{server.url}?socket_timeout=1", f"{server.tcp_url}?socket_timeout=1&protocol=3"
    workers = Workers(folder, log, urls, task, chance, plan.kinds)
    try:
        for _ in range(plan.processes):
            workers.start()
        _until(lambda: _count_logs(folder) > plan.processes, START_S)
        with Observer(server, log):
            injector = FaultInjector(server, workers, log, chance, found.acts)
            injector.run(plan.seconds)
            (folder / CALM).touch()
            began = now()
            _until(workers.finished, CALM_S)
            log.record("end")
            found.calm_s = now() - began
    finally:
        workers.end()
    found.violations += [Violation("process", now(), text) for text in workers.failures]
    with server.client() as client:
        _until(lambda: not client.dbsize(), LEFT_S)
        for key in client.scan_iter():
            log.record(
                "left", what=f"the key {key!r} ({client.type(key)!r}, {client.pttl(key)} ms)"
            )
    log.close()


def _count_logs(folder: Path) -> int:
    """Return how many event logs there are, the injector's included."""
    return len(list(folder.glob("*" + SUFFIX)))


def _until(condition: Callable[[], object], wait_s: float) -> bool:
    """Wait for a condition, but not for ever: its absence is judged later."""
    give_up = now() + wait_s
    while not condition():
        if now() > give_up:
            return False
        time.sleep(0.05)
    return True

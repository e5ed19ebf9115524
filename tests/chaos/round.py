"""One round of chaos: a server, its workers, the sabotage, the calm after it, and the verdict."""

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
from tests.chaos.crew import Crew
from tests.chaos.diary import SUFFIX, Diary, read_all
from tests.chaos.observer import CONFIG, Observer
from tests.chaos.saboteur import Saboteur
from tests.chaos.worker import CALM, KINDS, Task
from tests.simulation.checker import Limits, Verdict, Violation, check
from tests.support.servers import BINARIES, Server

LIMITS = Limits(prompt_s=2.0, takeover_s=2.0, late_s=1.0)
"""Dozens of processes share the cores: what is stuck is late by far more than that."""

START_S = 60.0
"""How long starting all workers may take."""

CALM_S = 15.0
"""How long finishing in the calm may take. Leases of the dead end within 3 s, and a lock that was
given to one of them is free within 2.5; whoever waits longer was forgotten."""

LEFT_S = 12.0
"""After how long no key may be left: a tombstone lives 5 s, the longest of short leases 3."""


@dataclass
class Outcome:
    """What came of a round."""

    folder: Path
    acts: Counter[str] = field(default_factory=Counter)
    held: int = 0
    handed_over: int = 0
    attributed: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    calm_s: float = 0.0
    """How long it took until all had finished."""


@dataclass(frozen=True)
class Plan:
    """What a round is to be."""

    server: str
    seconds: float
    seed: int
    processes: int
    fault: str = ""
    kinds: Sequence[str] = KINDS


def play(plan: Plan) -> Outcome:
    """Play a round; its diaries are kept in a folder if something is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="lualock-chaos-"))
    found = Outcome(folder)
    steady = Server("steady", BINARIES[plan.server])
    try:
        server = Server(plan.server, BINARIES[plan.server], CONFIG)
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
    """What the checker says of the diaries in a folder."""
    events = list(read_all(folder))
    verdict: Verdict = check(events, LIMITS)
    queued = {event.id for event in events if event.kind == "queued"}
    handed_over = sum(event.kind == "got" and event.id in queued for event in events)
    told = verdict.attributed, verdict.violations
    return Outcome(folder, Counter(), verdict.held, handed_over, *told)


def _contend(plan: Plan, found: Outcome, server: Server, steady: Server) -> None:
    folder = found.folder
    diary = Diary(folder, "saboteur")
    task = Task(
        who="",
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
    crew = Crew(folder, diary, urls, task, chance, plan.kinds)
    try:
        for _ in range(plan.processes):
            crew.start()
        _until(lambda: _diaries(folder) > plan.processes, START_S)
        with Observer(server, diary):
            saboteur = Saboteur(server, crew, diary, chance, found.acts)
            saboteur.sabotage(plan.seconds)
            (folder / CALM).touch()
            began = now()
            _until(crew.finished, CALM_S)
            diary.tell("end")
            found.calm_s = now() - began
    finally:
        crew.end()
    found.violations += [Violation("process", now(), text) for text in crew.wrong]
    with server.client() as client:
        _until(lambda: not client.dbsize(), LEFT_S)
        for key in client.scan_iter():
            diary.tell(
                "left", what=f"the key {key!r} ({client.type(key)!r}, {client.pttl(key)} ms)"
            )
    diary.close()


def _diaries(folder: Path) -> int:
    """How many have begun to write, the saboteur among them."""
    return len(list(folder.glob("*" + SUFFIX)))


def _until(condition: Callable[[], object], wait_s: float) -> bool:
    """Wait for a condition, but not for ever: what did not come is judged later."""
    give_up = now() + wait_s
    while not condition():
        if now() > give_up:
            return False
        time.sleep(0.05)
    return True

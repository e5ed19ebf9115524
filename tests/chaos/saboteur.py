"""What is done to workers and server. One seed decides what, and about when.

The time is divided into chapters: in each only some acts are drawn, or none, so that not everything
excuses everything always.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from lualock._core.clock import now
from tests.chaos.crew import Crew
from tests.chaos.diary import Diary
from tests.support.servers import Server

STOPPED_MAX = 3
"""How many workers stand still at a time."""

CUT_S = 1.0
"""How long after its connections were killed a process may still be reconnecting."""


@dataclass
class Saboteur:
    """Does what it does until the time is over. The server and its client are its own to break."""

    server: Server
    crew: Crew
    diary: Diary
    chance: Random
    acts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._client: Any = self.server.client()
        self._ends: list[tuple[float, str]] = []  # of pauses: when, and whose
        # These excuse only the processes that they befall, or nobody.
        self._gentle = [self.kill_worker, self.stop_worker, self.flush_scripts]
        self._all: list[Callable[[], None]] = [
            *self._gentle,
            self.kill_connections,
            self.pause_clients,
            self.stop_server,
            self.restart_server,
        ]

    def sabotage(self, seconds: float) -> None:
        """All chapters. Afterwards everything runs, and nothing is done any more."""
        end = now() + seconds
        # Each once to begin with, however short the time.
        for act in self.chance.sample(self._all, len(self._all)):
            act()
            self._pass(min(0.3, seconds / 20))
        while now() < end:
            what = self.chance.choice(("all", "all", "workers", "nothing"))
            if what == "nothing":
                # For longer than what happened before excuses anything.
                self._pass(min(self.chance.uniform(12, 20), end - now()))
                continue
            acts = self._all if what == "all" else self._gentle
            some = self.chance.sample(acts, self.chance.randint(1, len(acts)))
            length_s = min(self.chance.uniform(4, 12), end - now())
            self._chapter(now() + length_s, some, self.chance.choice((0.1, 0.5, 1.5)))
        self.crew.carry_on_all()
        self._ends.clear()
        self._client.close()

    def _chapter(self, end: float, acts: list[Callable[[], None]], gap_s: float) -> None:
        while now() < end:
            self.chance.choice(acts)()
            self._pass(min(self.chance.expovariate(1 / gap_s), end - now()))

    def _pass(self, seconds: float) -> None:
        """Let time pass, in which those who stand still may go on."""
        end = now() + seconds
        self._ends.sort()
        while self._ends and self._ends[0][0] <= end:
            due, who = self._ends.pop(0)
            time.sleep(max(0.0, due - now()))
            if who in self.crew.stopped:
                self.crew.carry_on(who)
        time.sleep(max(0.0, end - now()))

    def _cause(self, what: str, since: float, for_s: float = 0.0) -> None:
        self.diary.tell("cause", since, what=what, until=now() + for_s)

    def kill_worker(self) -> None:
        """SIGKILL, also of one that stands still; another takes its place."""
        self.acts["kills"] += 1
        self.crew.kill(self.chance.choice(list(self.crew.processes)))
        self.crew.start()

    def stop_worker(self) -> None:
        """SIGSTOP, mostly for longer than its leases last."""
        running = self.crew.running()
        if len(self.crew.stopped) >= STOPPED_MAX or not running:
            return
        self.acts["stops"] += 1
        who = self.chance.choice(running)
        self.crew.stop(who)
        self._ends.append((now() + self.chance.choice((0.2, 1.0, 3.0, 4.0)), who))

    def kill_connections(self) -> None:
        """CLIENT KILL of all of a kind."""
        kind, since = self.chance.choice(("normal", "pubsub")), now()
        self.acts[f"{kind} connections killed"] += 1
        self._client.client_kill_filter(_type=kind, skipme=True)
        self._cause("cut", since, CUT_S)

    def pause_clients(self) -> None:
        """CLIENT PAUSE: nobody is answered for a while."""
        since, for_s = now(), self.chance.choice((0.05, 0.2, 1.0, 2.0))
        self.acts["pauses"] += 1
        self._client.execute_command("CLIENT", "PAUSE", str(int(for_s * 1000)))
        self._cause("stall", since, for_s)

    def flush_scripts(self) -> None:
        """SCRIPT FLUSH. That excuses nothing."""
        self.acts["flushes"] += 1
        self._client.script_flush()

    def stop_server(self) -> None:
        """SIGSTOP of the server."""
        assert self.server.process is not None
        since = now()
        self.acts["server stops"] += 1
        self.server.process.send_signal(signal.SIGSTOP)
        try:
            self._pass(self.chance.choice((0.05, 0.3, 1.5, 3.0)))
        finally:
            self.server.process.send_signal(signal.SIGCONT)
        self._cause("stall", since)

    def restart_server(self) -> None:
        """SIGKILL of the server: all data are lost."""
        since = now()
        self.acts["restarts"] += 1
        self.server.kill()
        os.unlink(self.server.socket)
        self._pass(self.chance.choice((0.0, 0.0, 0.5)))
        self.server.start()
        self._cause("data_loss", since)
        self._cause("restart", since, CUT_S)

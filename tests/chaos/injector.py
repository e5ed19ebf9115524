"""Inject faults into workers and server. One seed decides which, and about when.

The time is divided into chapters. Each draws only some faults, or none, because a fault excuses
violations of some rules.
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
from tests.chaos.event_log import EventLog
from tests.chaos.workers import Workers
from tests.support.servers import Server

STOPPED_MAX = 3
"""How many workers are paused at a time."""

CUT_S = 1.0
"""How long a process may take to reconnect after its connections were killed."""


@dataclass
class FaultInjector:
    """Injects faults until the time is over."""

    server: Server
    workers: Workers
    log: EventLog
    chance: Random
    acts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._client: Any = self.server.client()
        self._ends: list[tuple[float, str]] = []  # of pauses: when, and of which worker
        # These excuse only the processes that they strike, or none.
        self._gentle = [self.kill_worker, self.stop_worker, self.flush_scripts]
        self._all: list[Callable[[], None]] = [
            *self._gentle,
            self.kill_connections,
            self.pause_clients,
            self.stop_server,
            self.restart_server,
        ]

    def run(self, seconds: float) -> None:
        """Inject faults for so long, then let everything run again."""
        end = now() + seconds
        # Each fault once to begin with, however short the time.
        for act in self.chance.sample(self._all, len(self._all)):
            act()
            self._wait(min(0.3, seconds / 20))
        while now() < end:
            what = self.chance.choice(("all", "all", "workers", "nothing"))
            if what == "nothing":
                # For longer than the earlier faults excuse anything.
                self._wait(min(self.chance.uniform(12, 20), end - now()))
                continue
            acts = self._all if what == "all" else self._gentle
            some = self.chance.sample(acts, self.chance.randint(1, len(acts)))
            length_s = min(self.chance.uniform(4, 12), end - now())
            self._chapter(now() + length_s, some, self.chance.choice((0.1, 0.5, 1.5)))
        self.workers.resume_all()
        self._ends.clear()
        self._client.close()

    def _chapter(self, end: float, acts: list[Callable[[], None]], gap_s: float) -> None:
        while now() < end:
            self.chance.choice(acts)()
            self._wait(min(self.chance.expovariate(1 / gap_s), end - now()))

    def _wait(self, seconds: float) -> None:
        """Let time pass, and resume paused workers when their pauses end."""
        end = now() + seconds
        self._ends.sort()
        while self._ends and self._ends[0][0] <= end:
            due, name = self._ends.pop(0)
            time.sleep(max(0.0, due - now()))
            if name in self.workers.stopped:
                self.workers.resume(name)
        time.sleep(max(0.0, end - now()))

    def _cause(self, what: str, since: float, for_s: float = 0.0) -> None:
        self.log.record("cause", since, what=what, until=now() + for_s)

    def kill_worker(self) -> None:
        """Kill a worker, paused or not, and start another one."""
        self.acts["kills"] += 1
        self.workers.kill(self.chance.choice(list(self.workers.processes)))
        self.workers.start()

    def stop_worker(self) -> None:
        """Pause a worker, mostly for longer than its leases last."""
        running = self.workers.running()
        if len(self.workers.stopped) >= STOPPED_MAX or not running:
            return
        self.acts["stops"] += 1
        name = self.chance.choice(running)
        self.workers.stop(name)
        self._ends.append((now() + self.chance.choice((0.2, 1.0, 3.0, 4.0)), name))

    def kill_connections(self) -> None:
        """Kill all connections of a kind (CLIENT KILL)."""
        kind, since = self.chance.choice(("normal", "pubsub")), now()
        self.acts[f"{kind} connections killed"] += 1
        self._client.client_kill_filter(_type=kind, skipme=True)
        self._cause("cut", since, CUT_S)

    def pause_clients(self) -> None:
        """Let the server answer no client for a while (CLIENT PAUSE)."""
        since, for_s = now(), self.chance.choice((0.05, 0.2, 1.0, 2.0))
        self.acts["pauses"] += 1
        self._client.execute_command("CLIENT", "PAUSE", str(int(for_s * 1000)))
        self._cause("stall", since, for_s)

    def flush_scripts(self) -> None:
        """Make the server forget its scripts (SCRIPT FLUSH), which excuses nothing."""
        self.acts["flushes"] += 1
        self._client.script_flush()

    def stop_server(self) -> None:
        """Pause the server (SIGSTOP)."""
        assert self.server.process is not None
        since = now()
        self.acts["server stops"] += 1
        self.server.process.send_signal(signal.SIGSTOP)
        try:
            self._wait(self.chance.choice((0.05, 0.3, 1.5, 3.0)))
        finally:
            self.server.process.send_signal(signal.SIGCONT)
        self._cause("stall", since)

    def restart_server(self) -> None:
        """Kill the server (SIGKILL) and start it without data."""
        since = now()
        self.acts["restarts"] += 1
        self.server.kill()
        os.unlink(self.server.socket)
        self._wait(self.chance.choice((0.0, 0.0, 0.5)))
        self.server.start()
        self._cause("data_loss", since)
        self._cause("restart", since, CUT_S)

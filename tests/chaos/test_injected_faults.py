"""Thousands of acquisitions in several processes, threads and tasks, while the server has faults:
one holder at a time, fences in order, and each worker finishes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

import lualock
from tests.support.contender import Task, Turn
from tests.support.servers import BINARIES, Server

FIRST = next(iter(BINARIES))
NAMES = ["x", "y"]
TTL = 1.0
SECONDS = 2.0
PROCESSES = ((3, False), (3, False), (4, True))  # workers, and whether they are coroutines
TURNS = 200  # a worker, at least


@dataclass
class FaultInjector:
    """Injects faults into the server until its event ``stop`` is set."""

    server: Server
    client: Any
    stop: threading.Event = field(default_factory=threading.Event)
    acts: list[float] = field(default_factory=list)  # when

    def every(self, seconds: float, *acts: Callable[[], Any]) -> None:
        """Inject these faults in turn, one in so many seconds."""
        while True:
            for act in acts:
                if self.stop.wait(seconds):
                    return
                self.acts.append(time.monotonic())
                act()

    def flush_scripts(self) -> None:
        self.every(0.003, self.client.script_flush)

    def pause_clients(self) -> None:
        self.every(0.1, lambda: self.client.execute_command("CLIENT", "PAUSE", "40"))

    def kill_connections(self) -> None:
        def kill(kind: str) -> None:
            self.client.client_kill_filter(_type=kind, skipme=True)

        self.every(0.02, lambda: kill("normal"), lambda: kill("pubsub"))

    def stall(self) -> None:
        self.every(0.2, lambda: self.client.execute_command("DEBUG", "SLEEP", "0.1"))

    def fill_memory(self) -> None:
        try:
            self.every(
                0.04,
                lambda: self.client.config_set("maxmemory", "1"),
                lambda: self.client.config_set("maxmemory", "0"),
            )
        finally:
            self.client.config_set("maxmemory", "0")

    def crash(self) -> None:
        def act() -> None:
            self.server.kill()
            os.unlink(self.server.socket)
            self.server.start()

        self.every(0.5, act)


def run_contenders(task: Task, injector: FaultInjector, fault: Callable[[], None]) -> list[Turn]:
    """Let the processes contend while faults are injected; return their turns."""
    processes = []
    try:
        for workers, asynchronous in PROCESSES:
            task.workers, task.asynchronous = workers, asynchronous
            command = [
                sys.executable,
                "-W",
                "error::ResourceWarning",
                "-m",
                "tests.support.contender",
            ]
            processes.append(
                subprocess.Popen(
                    [*command, json.dumps(asdict(task))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        thread = threading.Thread(target=fault)
        thread.start()
        try:
            with ThreadPoolExecutor(len(processes)) as pool:
                outputs = list(pool.map(lambda p: p.communicate("go\n", timeout=60), processes))
        finally:
            injector.stop.set()
            thread.join(10)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    turns: list[Turn] = []
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, (process.args, err)
        assert "Traceback" not in err, err
        had, errors = json.loads(out)
        turns += [Turn(**turn) for turn in had]
        print(errors)
    return turns


def check_turns(turns: list[Turn], restarts: list[float]) -> None:
    """Check that there is one holder at a time, except after a restart without data, and that the
    fences increase."""

    def restarted(since: float, until: float) -> bool:
        # A reply may have been on its way already when the server was killed.
        return any(since - 0.2 <= restart <= until for restart in restarts)

    for name in NAMES:
        had = sorted((turn for turn in turns if turn.name == name), key=lambda turn: turn.start)
        last = had[0]  # the one that has it for longest so far
        for previous, turn in itertools.pairwise(had):
            assert turn.fence > previous.fence, f"a fence that did not grow: {previous}, {turn}"
            if turn.start < last.end:
                assert restarted(last.start, turn.start), f"two holders: {last}, {turn}"
            if turn.end > last.end:
                last = turn
        for turn in had:
            if turn.false_loss:
                assert restarted(turn.start, turn.end + TTL), f"a release called lost: {turn}"


CASES = [
    (FIRST, "flush_scripts", ()),
    (
        FIRST,
        "pause_clients",
        ("--hz", "100"),
    ),  # how often the server checks whether a pause is over
    (FIRST, "kill_connections", ()),
    (FIRST, "stall", ("--enable-debug-command", "yes")),
    (FIRST, "crash", ()),
    *((name, "fill_memory", ()) for name in BINARIES),  # versions differ in what scripts may do
]


@pytest.mark.full
@pytest.mark.parametrize(("name", "fault", "config"), CASES)
def test_injected_faults(name: str, fault: str, config: tuple[str, ...]) -> None:
    """No fault of the server gives a lock two holders or leaves a worker stuck."""
    server = Server(name, BINARIES[name], config)
    try:
        with server.client() as client:
            injector = FaultInjector(server, client)
            task = Task(f"{server.url}?socket_timeout=0.5", NAMES, TTL, TURNS, SECONDS, 0, False)
            turns = run_contenders(task, injector, getattr(injector, fault))
            assert len(turns) >= TURNS * 10 * 0.9
            assert len(injector.acts) >= 3
            check_turns(turns, injector.acts if fault == "crash" else [])
            for each in NAMES:
                with lualock.connect(server.url) as locks:
                    lock = locks.lock(each, ttl=TTL)
                    lock.acquire(timeout=TTL + 1).release()
                    assert lock.inspect().waiters == 0
    finally:
        server.close()

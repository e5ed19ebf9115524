"""Processes: the simulator's driver.

It does for the protocol's steps what ``lualock/_transport`` does with sockets. Both kinds are here:
*threads* have a connection for each call under way and keep it for the next, a *loop* has one for
all its calls. Each connection keeps its order; between two there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

from lualock._protocol import (
    AwaitMessage,
    CleanupLater,
    Connect,
    Effect,
    Pipeline,
    RunScript,
    SendScript,
    ServerClock,
    Steps,
    Subscribe,
)
from lualock._transport.threads.background import GRACE_S, PATIENCE_S
from lualock.errors import LockError, LockUnavailable
from tests.simulation.asking import Asked, Owed, OwedByLine, OwedInLoop, Way, answer
from tests.simulation.ear import Ear
from tests.simulation.lines import TIMEOUT_S, Done, Line, Opening, Sender
from tests.simulation.orphans import lock_of
from tests.simulation.world import US, World


class Interrupted(BaseException):
    """What a cancellation or a KeyboardInterrupt is in the simulator."""


class Process:
    """A program on some machine: its clock, its connections, and what it has under way."""

    def __init__(self, world: World, name: str, *, threads: bool) -> None:
        self.world = world
        self.name = name
        self.threads = threads
        self.dead = False
        self.paused_until = 0
        self.cut_until = 0  # nothing comes in or goes out until then
        self.slow_us = 0
        self.offset_s = world.random.random() * 1e5
        self.tasks: set[Task] = set()
        self.lost_replies = 0  # how often a connection broke under a request
        self.failures = 0  # whatever else went wrong with requests
        self._idle: list[Line] = []  # a loop has only one, the one that it uses
        self._beside: Line | None = None  # a loop's other one, while that is silent
        self.forked = False  # by C code, so that no hook told of it
        self.server_clock = ServerClock(self.clock, TIMEOUT_S)
        self.ear = Ear(self)

    def clock(self) -> float:
        """The local clock, which is nobody else's."""
        return self.world.now / US + self.offset_s

    def soon(self, us: int, act: Callable[..., None], *args: Any) -> None:
        """Let this process do something after that time, unless it is dead by then."""
        self.world.after(us, self._act, act, args)

    def _act(self, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.dead:
            return
        if self.world.now < self.paused_until:
            self.world.at(self.paused_until, self._act, act, args)
            return
        act(*args)

    def arrival(self, earliest: int) -> int:
        """When a message that leaves now, to or from this process, arrives."""
        world = self.world
        took = world.latency_us
        if self.slow_us:
            took += int(self.slow_us * world.random.random() ** 3)
        elif took > 1:
            took = int(took * (0.5 + world.random.random()))
        now = world.now
        if now < self.cut_until:
            # The kernel sends it again and again, and in the end it arrives.
            now = self.cut_until + int(world.random.random() * 50_000)
        return max(earliest, now + took)

    def start(self, steps: Steps[Any], done: Done | None = None) -> Task:
        """Carry a protocol out."""
        task = Task(self, steps, done)
        self.tasks.add(task)
        task.go(None, None)
        return task

    def in_line(self, call: RunScript) -> None:
        """A reply says that somebody has a place in the queue."""
        who = call.parts[2][:22].rstrip(b"._").decode()
        self.world.record("queued", lock=lock_of(call), who=self.name, id=who)

    def resubscribe(self) -> None:
        """See the drivers."""
        if self.ear.line is not None:
            self.ear.line.broken(0)

    def crash(self) -> None:
        """SIGKILL."""
        self.dead = True
        for task in self.tasks:
            task.steps.close()  # Python's way to say that nobody finishes it
        self.tasks.clear()

    # connections for calls

    @property
    def idle(self) -> bool:
        """Whether it has a connection that is not in use."""
        return bool(self._idle)

    def fork(self, name: str) -> Process:
        """A child that C code forked: what it has of connections is its parent's."""
        child = Process(self.world, name, threads=self.threads)
        child.offset_s = self.offset_s
        child.server_clock = copy(self.server_clock)
        child.forked = True
        if self.threads:  # (a child has none of its parent's loops)
            child._idle = [line.shared_with(child) for line in self._idle]
        return child

    def _start_anew(self) -> None:
        self.forked = False
        if "forked" not in self.world.server.bugs:
            for line in list(self._idle):
                line.close()

    def _with_line(self, until: float | None, use: Callable[[Line], None], done: Done) -> None:
        if self.forked:
            self._start_anew()
        if self._idle:
            use(self._idle.pop() if self.threads else self._idle[-1])
            return
        self.connect(until, partial(self._connected, use), done, calls=True)

    def connect(
        self, until: float | None, ready: Callable[[], None], failed: Done, *, calls: bool
    ) -> None:
        """Open a connection. One for calls asks for the server's time before anything else."""
        Opening(self, until, ready, failed, calls)

    def _connected(self, use: Callable[[Line], None]) -> None:
        if not self.threads and not self._idle:
            self._idle.append(Line(self))
        use(Line(self) if self.threads else self._idle[-1])

    def beside(
        self, silent: Line, until: float, ready: Callable[[Line], None], failed: Done
    ) -> None:
        """Another line than this one, which is silent."""
        if self.threads:
            self.connect(until, lambda: ready(Line(self)), failed, calls=True)
        elif self._idle and self._idle[-1] is not silent:
            ready(self._idle[-1])
        elif self._beside is not None:
            ready(self._beside)
        else:
            self.connect(until, partial(self._is_beside, ready), failed, calls=True)

    def _is_beside(self, ready: Callable[[Line], None]) -> None:
        if self._beside is None:
            self._beside = Line(self)
        ready(self._beside)

    def not_needed(self, line: Line) -> None:
        """The caller that wanted another line needs none any more."""
        if self.threads:
            line.close()

    def answered(self, first: Line, silent: Line, other: Line) -> None:
        """Of two lines this was the first to answer; the other one is closed."""
        if self.threads:
            if first is silent:
                other.close()
            else:
                self.drop(silent)
            return
        if first is self._beside:
            self._beside = None
            if not self._idle or self._idle[-1] is silent:
                self._idle = [first]
        if first is not silent:
            silent.close()
        elif self._beside is not None:
            self._beside.close()

    def call(self, call: RunScript, done: Done) -> Asked:
        """Run a script and hear its reply."""

        def answered(replies: Any, error: LockError | None = None) -> None:
            reply = None if error is not None else answer(replies[0], call)
            if isinstance(reply, LockError):
                reply, error = None, reply
            self._count(error)
            done(reply, error)

        asked = Asked(self, [call], call.until, answered)
        self._with_line(call.until, asked.ask, asked.finish)
        return asked

    def _count(self, error: LockError | None) -> None:
        if getattr(error, "outcome_unknown", False):
            self.lost_replies += 1
        elif error is not None:
            self.failures += 1

    def post(self, call: SendScript, done: Done) -> None:
        """Send a call whose reply is looked at later."""
        posted = self.clock()

        def use(line: Line) -> None:
            if not self.threads:
                done(OwedInLoop(line, call, posted))
                return
            held = call.lazy and self.world.random.random() < 0.5
            owed = OwedByLine(line, call, posted, hold=held)
            self.put_back(line)
            if not owed.over:  # else its thread was interrupted while it wrote
                done(owed)

        self._with_line(call.until, use, done)

    def reach(self, step: Connect, done: Done) -> None:
        """See to it that there is a connection."""

        def use(line: Line) -> None:
            self.put_back(line)
            done(None)

        self._with_line(step.until, use, done)

    def batch(self, batch: Pipeline, done: Done) -> None:
        """Run many scripts in one round trip."""

        def answered(replies: Any, error: LockError | None = None) -> None:
            self._count(error)
            if error is not None:
                done(None, error)
            else:
                done([answer(*pair) for pair in zip(replies, batch.calls, strict=True)])

        asked = Asked(self, batch.calls, batch.until, answered)
        self._with_line(batch.until, asked.ask, asked.finish)

    def later(self, step: CleanupLater) -> None:
        """Make a call when its orphan has expired, unless the order of a connection makes sure."""
        via = step.orphan.via
        if self.threads and isinstance(via, Owed) and via.answered:
            return
        late_s = max(0.0, step.orphan.expires - self.clock())
        if self.threads or not (isinstance(via, Line) and via.open):
            self._will_be_laid(step, self.world.now / US + late_s)
        self.soon(int(late_s * US), self._cleanup_now, step)

    def _will_be_laid(self, step: CleanupLater, at: float) -> None:
        until, token = self.world.ghost_until, step.call.parts[2]
        until[token] = max(until.get(token, 0.0), at)

    def _cleanup_now(self, step: CleanupLater) -> None:
        via = step.orphan.via
        if not self.threads:
            if isinstance(via, Line) and via.open:
                return  # it has lived until now
            self._will_be_laid(step, self.world.now / US)
        self.start(clean(self, replace(step.call)))

    def put_back(self, line: Line) -> None:
        """The line is free for the next."""
        if self.threads and line.open and line not in self._idle:
            self._idle.append(line)

    def drop(self, line: Line) -> None:
        """The line is no more; in threads, those beside it probably went the same way."""
        for other in [line, *(self._idle if self.threads else ())]:
            other.close()

    def forget_line(self, line: Line) -> None:
        """The line turned out to be closed."""
        if line in self._idle:
            self._idle.remove(line)
        if line is self._beside:
            self._beside = None


class Task:
    """One protocol that is carried out."""

    def __init__(self, process: Process, steps: Steps[Any], done: Done | None) -> None:
        self.process = process
        self.steps = steps
        self._done = done
        self._at = 0  # which step it is at, so that a late answer to another is not taken for it
        self._asked: Asked | None = None
        self._cleans: RunScript | None = None
        self._now: list[tuple[Any, BaseException | None]] = []  # the answer, if it came at once
        self._performs = False

    def go(self, value: Any, error: BaseException | None) -> None:
        """Send a reply in, or throw what went wrong in; perform what it wants then."""
        while True:
            self._at += 1
            self._asked = self._cleans = None
            try:
                step = self.steps.send(value) if error is None else self.steps.throw(error)
            except StopIteration as end:
                self._end(end.value, None)
                return
            except (LockError, Interrupted) as broke:
                self._end(None, broke)
                return
            except Exception as broke:
                if "unproved" not in self.process.world.server.bugs:
                    raise
                self._end(None, broke)  # it believed what was no answer to it
                return
            self._performs = True
            self._perform(step, partial(self._answer, self._at))
            self._performs = False
            if not self._now:
                return
            value, error = self._now.pop()

    def _end(self, value: Any, error: BaseException | None) -> None:
        self.process.tasks.discard(self)
        if self._done is not None:
            self._done(value, error)

    def _answer(self, at: int, value: Any, error: BaseException | None = None) -> None:
        if at != self._at or self.process.dead:
            return
        if self._performs:
            self._now.append((value, error))
        else:
            self.go(value, error)

    @property
    def asks(self) -> bool:
        """Whether it waits for a reply."""
        return self._asked is not None or self._cleans is not None

    def interrupt(self) -> None:
        """Throw an interruption in, wherever it is."""
        if self not in self.process.tasks:
            return
        if self._asked is not None:
            self._asked.interrupt()
        if self._cleans is not None and self.process.threads:
            self.process.start(clean(self.process, self._cleans))
        self._answer(self._at, None, Interrupted())

    def writes(self, sender: Sender) -> bool:
        """Whether it is this one's request that is being written."""
        if self not in self.process.tasks:
            return False
        return self._performs or (isinstance(sender, Way) and sender.asked is self._asked)

    def _perform(self, step: Effect, done: Done) -> None:
        process = self.process
        kind = type(step)
        if kind is AwaitMessage:
            assert isinstance(step, AwaitMessage)
            if step.token is not None:
                process.ear.wait(step, done)
            else:
                process.soon(int(step.seconds * US) + 1, done, None)
        elif kind is Subscribe:
            assert isinstance(step, Subscribe)
            process.ear.listen(step, done)
        elif kind is CleanupLater:
            assert isinstance(step, CleanupLater)
            process.later(step)
            done(None)
        elif kind is Connect:
            assert isinstance(step, Connect)
            process.reach(step, done)
        elif kind is Pipeline:
            assert isinstance(step, Pipeline)
            process.batch(step, done)
        elif kind is SendScript:
            assert isinstance(step, SendScript)
            process.post(step, done)
        else:
            assert isinstance(step, RunScript)
            if step.compensating:
                self._compensate(step, done)
            else:
                self._asked = process.call(step, done)

    def _compensate(self, step: RunScript, done: Done) -> None:
        process = self.process
        call = replace(step, compensating=False, until=None)
        now = process.clock()
        until = GRACE_S + (now if step.until is None else min(now, step.until))
        if process.threads:
            self._cleans = call

            def tried(reply: Any, error: LockError | None = None) -> None:
                if isinstance(error, LockUnavailable):
                    process.start(clean(process, call))
                done(reply, error)

            self._asked = process.call(replace(call, until=until), tried)
        else:
            process.start(clean(process, call), done)
            late = LockUnavailable("the server does not answer; the clean-up goes on")
            process.soon(max(0, int((until - now) * US)), done, None, late)


def clean(process: Process, call: RunScript) -> Steps[Any]:
    """What goes on behind a caller's back until it is done."""
    give_up, pause_s = process.clock() + PATIENCE_S, 0.05
    while True:
        try:
            return (yield call)
        except LockUnavailable:
            if process.clock() > give_up:
                raise
        yield AwaitMessage(pause_s)
        pause_s = min(pause_s * 2, 2.0)

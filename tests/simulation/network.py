"""Processes: the simulator's driver.

It carries out the protocol's steps, as ``lualock/_transport`` does with sockets. It has both kinds:
*threads* have a connection for each call under way and keep it for the next call, a *loop* has one
for all its calls. Each connection keeps its order; two connections have no common order.
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
from tests.simulation.connections import TIMEOUT_S, Connection, Done, Opening, Sender
from tests.simulation.orphans import lock_of
from tests.simulation.requests import (
    LoopSentReply,
    Request,
    SentCopy,
    SentReply,
    ThreadSentReply,
    answer,
)
from tests.simulation.subscriber import Subscriber
from tests.simulation.world import US, World


class Interrupted(BaseException):
    """A cancellation or a KeyboardInterrupt in the simulator."""


class Process:
    """A program on some machine: its clock, its connections, and its tasks."""

    def __init__(self, world: World, name: str, *, threads: bool) -> None:
        self.world = world
        self.name = name
        self.threads = threads
        self.dead = False
        self.paused_until = 0
        self.cut_until = 0  # no message enters or leaves until then
        self.slow_us = 0
        self.offset_s = world.random.random() * 1e5
        self.tasks: set[Task] = set()
        self.lost_replies = 0  # how often a connection broke under a request
        self.failures = 0  # how many requests failed otherwise
        self._idle: list[Connection] = []  # a loop has only one, and uses it
        self._beside: Connection | None = None  # a loop's second one, while the first is silent
        self.forked = False  # by C code, which runs no hook
        self.server_clock = ServerClock(self.clock, TIMEOUT_S)
        self.subscriber = Subscriber(self)

    def clock(self) -> float:
        """The clock of this process, which no other shares."""
        return self.world.now / US + self.offset_s

    def soon(self, us: int, act: Callable[..., None], *args: Any) -> None:
        """Call ``act`` in this process after that time, unless it is dead by then."""
        self.world.after(us, self._act, act, args)

    def _act(self, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.dead:
            return
        if self.world.now < self.paused_until:
            self.world.at(self.paused_until, self._act, act, args)
            return
        act(*args)

    def arrival(self, earliest: int) -> int:
        """Return when a message that leaves now, to or from this process, arrives."""
        world = self.world
        took = world.latency_us
        if self.slow_us:
            took += int(self.slow_us * world.random.random() ** 3)
        elif took > 1:
            took = int(took * (0.5 + world.random.random()))
        now = world.now
        if now < self.cut_until:
            # The kernel sends it repeatedly until it arrives.
            now = self.cut_until + int(world.random.random() * 50_000)
        return max(earliest, now + took)

    def start(self, steps: Steps[Any], done: Done | None = None) -> Task:
        """Start a task that carries a protocol out."""
        task = Task(self, steps, done)
        self.tasks.add(task)
        task.go(None, None)
        return task

    def stamp(self, call: RunScript) -> None:
        """Write the deadline, if it has one, into a call that is sent now."""
        if call.script.deadline_at is not None:
            self.server_clock.stamp(call)

    def note_queued(self, call: RunScript) -> None:
        """Record that a reply says that a caller has a place in the queue."""
        token = call.parts[2][:22]
        attempt = token.rstrip(b"._").decode()
        if token in self.world.turns:
            attempt = self.world.waits_as(token)
        self.world.record("queued", lock=lock_of(call), process=self.name, id=attempt)

    def resubscribe(self) -> None:
        """Connect again: see the drivers."""
        if self.subscriber.connection is not None:
            self.subscriber.connection.broken(0)

    def crash(self) -> None:
        """Kill the process."""
        self.dead = True
        for task in self.tasks:
            task.steps.close()  # as Python does for a generator that is not finished
        self.tasks.clear()

    # connections for calls

    @property
    def idle(self) -> bool:
        """Whether it has a connection that is not in use."""
        return bool(self._idle)

    def fork(self, name: str) -> Process:
        """Return a child that C code forked: it has its parent's connections."""
        child = Process(self.world, name, threads=self.threads)
        child.offset_s = self.offset_s
        child.server_clock = copy(self.server_clock)
        child.forked = True
        if self.threads:  # (a child has none of its parent's loops)
            child._idle = [connection.shared_with(child) for connection in self._idle]
        return child

    def _start_anew(self) -> None:
        self.forked = False
        if "forked" not in self.world.server.bugs:
            for connection in list(self._idle):
                connection.close()

    def _with_connection(
        self, until: float | None, use: Callable[[Connection], None], done: Done
    ) -> None:
        if self.forked:
            self._start_anew()
        if self._idle:
            use(self._idle.pop() if self.threads else self._idle[-1])
            return
        self.connect(until, partial(self._connected, use), done, calls=True)

    def connect(
        self, until: float | None, ready: Callable[[], None], failed: Done, *, calls: bool
    ) -> None:
        """Open a connection. One for calls reads the server's time first."""
        Opening(self, until, ready, failed, calls)

    def _connected(self, use: Callable[[Connection], None]) -> None:
        if not self.threads and not self._idle:
            self._idle.append(Connection(self))
        use(Connection(self) if self.threads else self._idle[-1])

    def beside(
        self, silent: Connection, until: float, ready: Callable[[Connection], None], failed: Done
    ) -> None:
        """Find another connection than this silent one."""
        if self.threads:
            self.connect(until, lambda: ready(Connection(self)), failed, calls=True)
        elif self._idle and self._idle[-1] is not silent:
            ready(self._idle[-1])
        elif self._beside is not None:
            ready(self._beside)
        else:
            self.connect(until, partial(self._is_beside, ready), failed, calls=True)

    def _is_beside(self, ready: Callable[[Connection], None]) -> None:
        if self._beside is None:
            self._beside = Connection(self)
        ready(self._beside)

    def not_needed(self, connection: Connection) -> None:
        """Give back another connection that its caller no longer needs."""
        if self.threads:
            connection.close()

    def answered(self, first: Connection, silent: Connection, other: Connection) -> None:
        """Keep the connection that answered first, and close the other one."""
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

    def call(self, call: RunScript, done: Done) -> Request:
        """Run a script and pass its reply on."""

        def answered(replies: Any, error: LockError | None = None) -> None:
            reply = None if error is not None else answer(replies[0], call)
            if isinstance(reply, LockError):
                reply, error = None, reply
            self._count(error)
            done(reply, error)

        request = Request(self, [call], call.until, answered)
        self._with_connection(call.until, request.send, request.finish)
        return request

    def _count(self, error: LockError | None) -> None:
        if getattr(error, "outcome_unknown", False):
            self.lost_replies += 1
        elif error is not None:
            self.failures += 1

    def post(self, call: SendScript, done: Done, interrupted: Callable[[], bool]) -> None:
        """Send a call whose reply is read later, unless its caller is interrupted before."""
        posted = self.clock()

        def use(connection: Connection) -> None:
            if interrupted():
                self.put_back(connection)
                return
            if not self.threads:
                done(LoopSentReply(connection, call, posted))
                return
            held = call.lazy and self.world.random.random() < 0.5
            owed = ThreadSentReply(connection, call, posted, hold=held)
            self.put_back(connection)
            if not owed.over:  # otherwise its thread was interrupted while it wrote
                done(owed)

        self._with_connection(call.until, use, done)

    def batch(self, batch: Pipeline, done: Done) -> None:
        """Run many scripts in one round trip."""

        def answered(replies: Any, error: LockError | None = None) -> None:
            self._count(error)
            if error is not None:
                done(None, error)
            else:
                done([answer(*pair) for pair in zip(replies, batch.calls, strict=True)])

        request = Request(self, batch.calls, batch.until, answered)
        self._with_connection(batch.until, request.send, request.finish)

    def later(self, step: CleanupLater) -> None:
        """Make a call when its orphan has expired, unless it is known to have run."""
        via = step.orphan.via
        if self.threads and isinstance(via, SentReply) and via.answered:
            return
        late_s = max(0.0, step.orphan.expires - self.clock())
        if self.threads or not (isinstance(via, Connection) and via.open):
            self._expect_cleanup(step, self.world.now / US + late_s)
        self.soon(int(late_s * US), self._cleanup_now, step)

    def _expect_cleanup(self, step: CleanupLater, at: float) -> None:
        until, token = self.world.orphans_until, step.call.parts[2]
        until[token] = max(until.get(token, 0.0), at)

    def _cleanup_now(self, step: CleanupLater) -> None:
        via = step.orphan.via
        if not self.threads:
            if isinstance(via, Connection) and via.open:
                return  # it has lived until now
            self._expect_cleanup(step, self.world.now / US)
        self.start(clean(self, replace(step.call)))

    def put_back(self, connection: Connection) -> None:
        """Keep the connection for the next call."""
        if self.threads and connection.open and connection not in self._idle:
            self._idle.append(connection)

    def drop(self, connection: Connection) -> None:
        """Close the connection; in threads also the idle ones, which have probably ended too."""
        for other in [connection, *(self._idle if self.threads else ())]:
            other.close()

    def forget_connection(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        if connection in self._idle:
            self._idle.remove(connection)
        if connection is self._beside:
            self._beside = None


class Task:
    """Carries one protocol out."""

    def __init__(self, process: Process, steps: Steps[Any], done: Done | None) -> None:
        self.process = process
        self.steps = steps
        self._done = done
        self._at = 0  # the number of the step: a late answer to another step is ignored
        self._request: Request | None = None
        self._cleans: RunScript | None = None
        self._now: list[tuple[Any, BaseException | None]] = []  # the answer, if it came immediately
        self._performs = False

    def go(self, value: Any, error: BaseException | None) -> None:
        """Send a reply or throw an error into the protocol, and perform its next step."""
        while True:
            self._at += 1
            self._request = self._cleans = None
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
                self._end(None, broke)  # it believed the reply to another request
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
    def awaits_reply(self) -> bool:
        """Whether it waits for a reply."""
        return self._request is not None or self._cleans is not None

    def interrupt(self) -> None:
        """Throw an interruption into the protocol, whatever its step."""
        if self not in self.process.tasks:
            return
        if self._request is not None:
            self._request.interrupt()
        if self._cleans is not None and self.process.threads:
            self.process.start(clean(self.process, self._cleans))
        self._answer(self._at, None, Interrupted())

    def writes(self, sender: Sender) -> bool:
        """Whether a request of this task is being written."""
        if self not in self.process.tasks:
            return False
        return self._performs or (isinstance(sender, SentCopy) and sender.request is self._request)

    def _perform(self, step: Effect, done: Done) -> None:
        process = self.process
        kind = type(step)
        if kind is AwaitMessage:
            assert isinstance(step, AwaitMessage)
            if step.token is not None:
                process.subscriber.wait(step, done)
            else:
                process.soon(int(step.seconds * US) + 1, done, None)
        elif kind is Subscribe:
            assert isinstance(step, Subscribe)
            process.subscriber.listen(step, done)
        elif kind is CleanupLater:
            assert isinstance(step, CleanupLater)
            process.later(step)
            done(None)
        elif kind is Pipeline:
            assert isinstance(step, Pipeline)
            process.batch(step, done)
        elif kind is SendScript:
            assert isinstance(step, SendScript)
            at = self._at
            process.post(step, done, lambda: self._at != at)
        else:
            assert isinstance(step, RunScript)
            if step.compensating:
                self._compensate(step, done)
            else:
                self._request = process.call(step, done)

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

            self._request = process.call(replace(call, until=until), tried)
        else:
            process.start(clean(process, call), done)
            late = LockUnavailable("the server does not answer; the clean-up goes on")
            process.soon(max(0, int((until - now) * US)), done, None, late)


def clean(process: Process, call: RunScript) -> Steps[Any]:
    """Repeat a call in the background until it is done."""
    give_up, pause_s = process.clock() + PATIENCE_S, 0.05
    while True:
        try:
            return (yield call)
        except LockUnavailable:
            if process.clock() > give_up:
                raise
        yield AwaitMessage(pause_s)
        pause_s = min(pause_s * 2, 2.0)

"""Processes and their connections: the simulator's driver.

It does for the protocol's steps what ``lualock/drive`` does with sockets. Both kinds are here:
*threads* have a connection for each call under way and keep it for the next, a *loop* has one for
all its calls. Each connection keeps its order; between two there is none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from lualock.drive import wire
from lualock.errors import LockError, LockUnavailable
from lualock.keys import queue_key
from lualock.protocol import (
    ENQUEUE,
    LAST_WORD_S,
    Batch,
    Call,
    Later,
    Listen,
    Post,
    Reach,
    ServerClock,
    Step,
    Steps,
    Wait,
)
from tests.simulation.contract import Seen
from tests.simulation.store import Refused
from tests.simulation.world import US, World

TIMEOUT_S = 5.0
GRACE_S = 0.02
PATIENCE_S = 60.0
LAZY_US = 200_000
LAID_S = 3.0  # the longest pause of who cleans up, and a little

Done = Callable[..., None]  # (reply, error=None)


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
        self._idle: list[Line] = []
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

    def in_line(self, call: Call) -> None:
        """A reply says that somebody has a place in the queue."""
        who = call.parts[2][:22].rstrip(b"._").decode()
        self.world.record("queued", lock=lock_of(call), who=self.name, id=who)

    def listen_anew(self) -> None:
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

    def _with_line(self, until: float | None, use: Callable[[Line], None], done: Done) -> None:
        if self._idle:
            use(self._idle.pop() if self.threads else self._idle[-1])
            return
        self.connect(until, partial(self._connected, use), done, calls=True)

    def connect(
        self, until: float | None, ready: Callable[[], None], failed: Done, *, calls: bool
    ) -> None:
        """Open a connection. One for calls asks for the server's time before anything else."""
        _Opening(self, until, ready, failed, calls)

    def _connected(self, use: Callable[[Line], None]) -> None:
        if not self.threads and not self._idle:
            self._idle.append(Line(self))
        use(Line(self) if self.threads else self._idle[-1])

    def call(self, call: Call, done: Done) -> Asked:
        """Run a script and hear its reply."""
        asked = Asked(self, call, done)
        self._with_line(call.until, asked.ask, asked.finish)
        return asked

    def post(self, call: Post, done: Done) -> None:
        """Send a call whose reply is looked at later."""
        posted = self.clock()

        def use(line: Line) -> None:
            owed = Owed(line, call, posted)
            call.via = owed if self.threads else line
            held = call.lazy and self.threads and self.world.random.random() < 0.5
            line.send(owed, whole=call.lazy, hold=held)
            self.put_back(line)
            done(owed)

        self._with_line(call.until, use, done)

    def reach(self, step: Reach, done: Done) -> None:
        """See to it that there is a connection."""

        def use(line: Line) -> None:
            self.put_back(line)
            done(None)

        self._with_line(step.until, use, done)

    def batch(self, batch: Batch, done: Done) -> None:
        """Run many scripts in one round trip."""
        replies: list[Any] = []

        def answered(reply: Any, error: LockError | None = None) -> None:
            if isinstance(error, LockUnavailable) and error.outcome_unknown:
                done(None, error)
                return
            replies.append(reply if error is None else error)
            if len(replies) == len(batch.calls):
                done(replies)

        def use(line: Line) -> None:
            for call in batch.calls:
                call.until = batch.until
                Asked(self, call, answered).ask(line)

        self._with_line(batch.until, use, done)

    def later(self, step: Later) -> None:
        """Make a call when its ghost has expired, unless the order of a connection makes sure."""
        via = step.ghost.via
        if self.threads and isinstance(via, Owed) and via.answered:
            return
        late_s = max(0.0, step.ghost.expires - self.clock())
        if self.threads or not (isinstance(via, Line) and via.open):
            self._will_be_laid(step, self.world.now / US + late_s)
        self.soon(int(late_s * US), self._lay, step)

    def _will_be_laid(self, step: Later, at: float) -> None:
        until, token = self.world.ghost_until, step.call.parts[2]
        until[token] = max(until.get(token, 0.0), at)

    def _lay(self, step: Later) -> None:
        via = step.ghost.via
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
        """The line is no more; those beside it probably went the same way."""
        lines, self._idle = self._idle, []
        for other in {line, *(lines if self.threads else ())}:
            other.close()

    def forget_line(self, line: Line) -> None:
        """The line turned out to be closed."""
        if line in self._idle:
            self._idle.remove(line)


class _Opening:
    """A connection that is being opened."""

    def __init__(
        self,
        process: Process,
        until: float | None,
        ready: Callable[[], None],
        failed: Done,
        calls: bool,
    ) -> None:
        self._process = process
        self._ready, self._failed, self._calls = ready, failed, calls
        self._over = False
        left_s = TIMEOUT_S if until is None else min(TIMEOUT_S, until - process.clock())
        process.soon(int(max(left_s, LAST_WORD_S) * US), self._fail, TimeoutError("no answer"))
        world = process.world
        world.at(process.arrival(0), self._knock)

    def _knock(self) -> None:
        process, world = self._process, self._process.world
        if world.server.down:
            refused = ConnectionRefusedError("nobody listens")
            process.soon(world.latency_us, self._fail, refused)
        elif world.now < world.server.stalled_until:
            # The kernel accepts connections, but nobody answers on them.
            world.at(world.server.stalled_until, self._knock)
        else:
            world.at(process.arrival(0), process._act, self._shaken, ())

    def _shaken(self) -> None:
        process = self._process
        if self._over:
            return
        if self._calls:
            process.world.at(process.arrival(0), self._asked_time, process.clock())
        else:
            self._open()

    def _asked_time(self, sent: float) -> None:
        process, world = self._process, self._process.world
        server = world.server
        if server.down:
            process.soon(world.latency_us, self._fail, ConnectionResetError("reset"))
        elif world.now < server.stalled_until:
            world.at(server.stalled_until, self._asked_time, sent)
        else:
            told = sent, server.clock_us()
            world.at(process.arrival(0), process._act, self._told_time, told)

    def _told_time(self, sent: float, server_us: int) -> None:
        if not self._over:
            self._process.server_clock.compare(sent, self._process.clock(), server_us)
            self._open()

    def _open(self) -> None:
        if self._process.world.server.down:
            self._fail(ConnectionResetError("reset"))
        elif not self._over:
            self._over = True
            self._ready()

    def _fail(self, why: Exception) -> None:
        if not self._over:
            self._over = True
            self._failed(None, wire.connect_error(why, "sim"))


class Line:
    """A connection for calls, as seen from its process."""

    __slots__ = (
        *("_held", "_replies_at", "_requests_at", "_silenced"),
        *("alive", "open", "owed", "process"),
    )

    def __init__(self, process: Process) -> None:
        self.process = process
        self.open = self.alive = True  # to its process; to the server
        self.owed: list[Any] = []  # Asked and Owed whose replies are to come
        self._held: list[tuple[Any, bool]] = []
        self._requests_at = self._replies_at = 0
        self._silenced = False  # and its process does not know
        process.world.server.lines.append(self)

    def send(self, sender: Any, *, whole: bool = False, hold: bool = False) -> None:
        """Send a request; ``hold``: the kernel may keep it back for a moment."""
        if not sender.sent:
            sender.sent = True
            self.owed.append(sender)
            if not self.process.threads:
                self.process.soon(int(TIMEOUT_S * US), self._silent, sender)
        if hold:
            self._held.append((sender, whole))
            self.process.world.after(LAZY_US, self.flush)
            return
        self.flush()
        self._send(sender, whole)

    def _silent(self, sender: Any) -> None:
        if sender in self.owed:
            self.close()

    def flush(self) -> None:
        """What was kept back leaves."""
        if self._held:
            held, self._held = self._held, []
            for sender, whole in held:
                self._send(sender, whole)

    def _send(self, sender: Any, whole: bool) -> None:
        process, world = self.process, self.process.world
        at = self._requests_at = process.arrival(self._requests_at)
        fate = world.fate() if world.flaky else ""
        if self._silenced:
            world.fault("cut", who=process.name, lasts_us=int(TIMEOUT_S * US))
        if fate == "late":
            # It takes its time on a connection that its process sees closed at once.
            world.fault("cut", who=process.name, lasts_us=US)
            world.after(world.latency_us, self.broken, False)
            world.at(at + int(world.random.random() * 8 * US), self._arrive, sender, whole, True)
        elif fate == "lost":
            world.fault("cut", who=process.name, lasts_us=US)
            world.after(world.latency_us, self.broken)
        elif fate == "mute":
            world.fault("cut", who=process.name, lasts_us=6 * US)
            self.alive = False  # no request arrives any more, and its process learns nothing
        elif fate == "slow":
            self._requests_at = at = at + int(world.random.random() * 4 * US)
            world.fault("slow", who=process.name, lasts_us=at - world.now)
            world.at(at, self._arrive, sender, whole, False)
        elif fate == "deaf":
            at += int(max(0.0, world.random.random() * 2 - 1) * 4 * US)
            world.fault("cut", who=process.name, lasts_us=at - world.now + int(TIMEOUT_S * US))
            self.alive, self._silenced = False, True  # it does arrive, and nothing else does
            world.at(at, self._arrive, sender, whole, True)
        else:
            world.at(at, self._arrive, sender, whole, False)
            if fate == "unheard":
                world.fault("cut", who=process.name, lasts_us=US)
                world.at(at, self.broken)

    def _arrive(self, sender: Any, whole: bool, late: bool) -> None:
        world = self.process.world
        server = world.server
        if server.down or not (self.alive or late):
            return
        if world.now < server.stalled_until:
            at = server.stalled_until + int(world.random.random() * 50)
            self._requests_at = at = max(at, self._requests_at)
            world.at(at, self._arrive, sender, whole, late)
            return
        if sender.over or self.process.dead:
            world.fault("ghost", lock=lock_of(sender.call))
            expires = sender.call.expires - self.process.offset_s
            world.ghosts(sender.call, expires)
            if world.t < expires < 1e6 and not self.process.dead:
                world.at(int((expires + LAID_S) * US), self._is_laid, sender.call)
        reply = server.execute(sender.call, whole)
        if sender.over or self.process.dead:
            self._for_nobody(sender.call, reply)
        if self.alive:
            at = self._replies_at = self.process.arrival(self._replies_at)
            world.at(at, self.process._act, self._answered, (sender, reply))

    def _for_nobody(self, call: Call, reply: Any) -> None:
        """A request ran whose caller was gone. When it has expired it takes nothing any more,
        unless the server's clock was put back meanwhile."""
        took = type(reply) is bytes and reply.isdigit()
        queued = type(reply) is list and reply[0] == b"queued" and call.script is ENQUEUE
        world, expires = self.process.world, call.expires - self.process.offset_s
        if took and call.script.name == "start":
            # The job's place goes with it, which by now may be that of its retry.
            world.record("cause", what="ghost", lock=f"{lock_of(call)}:job")
        if not (took or queued) or world.t <= expires:
            return
        token = token_of(call)
        world.record("cause", what="let_in", lock=lock_of(call), id=token.decode().rstrip("._"))
        if call.script is ENQUEUE:
            ttl_ms = call.parts[2][22:].split(b" ")[0]
        else:
            ttl_ms = call.parts[call.parts.index(token) + 1]
        world.let_in[token] = int(ttl_ms) / 1000
        if not world.faults["clock_back"]:
            world.wrong("late", f"{call.script.name} of {token!r} ran after its deadline")

    def _is_laid(self, call: Call) -> None:
        """A ghost has expired, and its owner was done with it before: it has nothing any more."""
        process, world = self.process, self.process.world
        token = token_of(call)
        ended = world.disowned.get(token)
        if process.dead or ended is None or ended > world.now - LAID_S * US:
            return
        if token in world.let_in:
            return  # by another of its requests, and a clock that was put back
        if world.ghost_until.get(token, 0.0) > world.t - LAID_S:
            return  # another of its requests expires later, and is judged then
        if world.excused(process.name, LAID_S):
            return
        store, lock = world.server.store, call.parts[0]
        seen = Seen.look(store, lock, queue_key(lock))
        if seen.owner == token or any(ticket[:22] == token for ticket in seen.tickets):
            world.wrong("ghost", f"what {token.decode().rstrip('.')} once asked for was not laid")

    def _answered(self, sender: Any, reply: Any) -> None:
        if not self.open or sender not in self.owed:
            return
        if isinstance(reply, Refused) and str(reply).startswith("NOSCRIPT"):
            sender.forgotten()
            return
        self.owed.remove(sender)
        if type(reply) is list and reply[0] == b"queued" and sender.call.script is ENQUEUE:
            self.process.in_line(sender.call)
        sender.settle(reply, None)

    def broken(self, both: bool = True) -> None:
        """The connection is cut; its process notices a moment later."""
        if both:
            self.alive = False
        self.process.soon(self.process.world.latency_us, self.close)

    def close(self) -> None:
        """Its process has closed it, or sees that it is closed. What it sent may still arrive."""
        if not self.open:
            return
        self.flush()
        self.open = False
        self.process.forget_line(self)
        owed, self.owed = self.owed, []
        why = wire.lost_reply(ConnectionResetError("reset"), "sim")
        for sender in owed:
            sender.settle(None, why)


class Asked:
    """A call whose caller waits for the reply."""

    __slots__ = ("_done", "call", "line", "over", "process", "sent")

    def __init__(self, process: Process, call: Call, done: Done) -> None:
        self.process = process
        self.call = call
        self._done = done
        self.line: Line | None = None
        self.over = self.sent = False

    def ask(self, line: Line) -> None:
        """There is a line."""
        if self.over:  # interrupted meanwhile
            self.process.put_back(line)
            return
        self.line = line
        call, process = self.call, self.process
        if not process.threads:
            call.via = line
        left_s = TIMEOUT_S
        if call.until is not None:
            left_s = min(TIMEOUT_S, max(LAST_WORD_S, call.until - process.clock()))
        process.soon(int(left_s * US) + 1, self.late)
        line.send(self)

    def forgotten(self) -> None:
        """The server has forgotten the script: send it whole."""
        if self.line is not None and not self.over and not self.call.moot:
            self.line.send(self, whole=True)

    def late(self) -> None:
        """The reply did not come in time."""
        if not self.over and self.line is not None:
            line = self.line
            self.finish(None, wire.lost_reply(TimeoutError("the time was over"), "sim"))
            if self.process.threads:
                self.process.drop(line)

    def interrupt(self) -> None:
        """Nobody waits for the reply any more."""
        self.over = True
        if self.line is not None and self.process.threads:
            self.line.close()

    def settle(self, reply: Any, error: LockError | None) -> None:
        """What the line has for us."""
        if self.over:
            return
        line = self.line
        assert line is not None
        if error is not None:
            self.process.drop(line)
        else:
            self.process.put_back(line)
        self.finish(reply, error)

    def finish(self, reply: Any, error: LockError | None = None) -> None:
        """Tell the caller."""
        if self.over:
            return
        self.over = True
        if isinstance(reply, Refused):
            reply, error = None, wire.reply_error(str(reply), self.call)
        if error is not None:
            if getattr(error, "outcome_unknown", False):
                self.process.lost_replies += 1
            else:
                self.process.failures += 1
        self._done(reply, error)


class Owed:
    """The reply to a posted call: the protocol's ``Pending``."""

    __slots__ = ("_error", "_line", "_reply", "_resend", "call", "over", "posted", "sent")

    def __init__(self, line: Line, call: Call, posted: float) -> None:
        self.call = call
        self.posted = posted  # before there was a line
        self._line = line
        self._reply: Any = None
        self._error: LockError | None = None
        self._resend = self.sent = False
        self.over = False

    @property
    def reply(self) -> Any:
        """What came, if it has."""
        return self._reply

    @property
    def answered(self) -> bool:
        """Whether the reply has come."""
        return self._reply is not None

    def forgotten(self) -> None:
        """The server has forgotten the script. A thread sees that when it looks, a loop at once."""
        if self.call.moot:
            return
        self._resend = True
        if not self._line.process.threads:
            self._send_whole()

    def _send_whole(self) -> None:
        if self._resend and self._line.open:
            self._resend = False
            self._line.send(self, whole=True)

    def settle(self, reply: Any, error: LockError | None) -> None:
        """What the line has for us."""
        self._reply, self._error = reply, error
        if error is not None:
            self.over = True

    def poll(self) -> Any:
        """See :class:`lualock.protocol.Pending`."""
        if self._error is not None:
            raise self._error
        if self._reply is None:
            self._line.flush()
            self._send_whole()
            return None
        if isinstance(self._reply, Refused):
            raise wire.reply_error(str(self._reply), self.call)
        return self._reply


class EarLine:
    """A connection for messages."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._at = 0
        self.open = True
        ear.process.world.server.ears.setdefault(ear.channel, []).append(self)

    def carry(self, message: bytes) -> None:
        """The server sends a message."""
        process = self._ear.process
        at = self._at = process.arrival(self._at)
        process.world.at(at, process._act, self._heard, (message,))

    def stalls(self, us: int) -> None:
        """No message arrives for some time."""
        process = self._ear.process
        self._at = max(self._at, process.world.now + us)
        process.world.fault("slow", who=process.name, lasts_us=us)

    def _heard(self, message: bytes) -> None:
        if self.open:
            self._ear.heard(message)

    def broken(self, notices_us: int = 150) -> None:
        """The server has it no more; its process notices after a while."""
        process = self._ear.process
        server = process.world.server
        for ears in server.ears.get(self._ear.channel, []), server.astray:
            if self in ears:
                ears.remove(self)
        process.soon(notices_us, self.close)

    def goes_astray(self, us: int) -> None:
        """The server that it is connected to is no primary any more, but repeats, for so long,
        what is said at the one that is."""
        process = self._ear.process
        process.world.server.astray.append(self)
        # Who takes such a message for its own has the lock until it has asked.
        process.world.fault("astray", us)
        process.world.after(us, self.broken)

    def repeat(self, channel: bytes, message: bytes) -> None:
        """What was said elsewhere, if it is for this channel."""
        if channel == self._ear.channel:
            self.carry(message)

    def close(self) -> None:
        """Its process sees that it is closed."""
        if self.open:
            self.open = False
            self._ear.lost(self)


class _Place:
    """Where one waiter finds its messages."""

    __slots__ = ("done", "messages", "since")

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.done: Done | None = None
        self.since = 0

    def tell(self, message: bytes | None) -> None:
        if self.done is not None:
            done, self.done = self.done, None
            done(message)
        elif message is not None:
            self.messages.append(message)


class Ear:
    """What listens for the messages of one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.channel = b"wake:" + process.name.encode()
        self.line: EarLine | None = None
        self._places: dict[bytes, _Place] = {}
        self._count = 0

    def listen(self, step: Listen, done: Done) -> None:
        """Hear messages for the token from now on."""
        place = self._places.setdefault(step.token, _Place())
        if step.anew and place.since == self._count and self.line is not None:
            self.line.broken(0)
            self.line.close()
        if self.line is not None:
            place.since = self._count
            done(self.channel)
            return
        ready = partial(self._subscribed, place, done)
        self.process.connect(step.until, ready, done, calls=False)

    def _subscribed(self, place: _Place, done: Done) -> None:
        if self.line is None:
            self.line = EarLine(self)
            self._count += 1
        place.since = self._count
        done(self.channel)

    def heard(self, message: bytes) -> None:
        """A message came."""
        place = self._places.get(message[:22])
        if place is not None:
            place.tell(message[22:])

    def lost(self, line: EarLine) -> None:
        """The connection broke: messages may have been lost."""
        if self.line is line:
            self.line = None
            self._count += 1
            for place in list(self._places.values()):
                place.tell(b"")

    def wait(self, step: Wait, done: Done) -> None:
        """The next message, or None when the time has passed."""
        assert step.token is not None
        place = self._places[step.token]
        if place.messages:
            done(place.messages.popleft())
        elif place.since != self._count:
            done(b"")
        else:
            place.done = done
            self.process.soon(int(min(step.seconds, 86_400) * US) + 1, self._over, place, done)

    def _over(self, place: _Place, done: Done) -> None:
        if place.done is done:
            place.tell(None)

    def forget(self, token: bytes) -> None:
        """Hear no more messages for the token."""
        self._places.pop(token, None)


class Task:
    """One protocol that is carried out."""

    def __init__(self, process: Process, steps: Steps[Any], done: Done | None) -> None:
        self.process = process
        self.steps = steps
        self._done = done
        self._at = 0  # which step it is at, so that a late answer to another is not taken for it
        self._asked: Asked | None = None
        self._cleans: Call | None = None
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
        if self not in self.process.tasks or self._performs:
            return
        if self._asked is not None:
            self._asked.interrupt()
        if self._cleans is not None and self.process.threads:
            self.process.start(clean(self.process, self._cleans))
        self.go(None, Interrupted())

    def _perform(self, step: Step, done: Done) -> None:
        process = self.process
        kind = type(step)
        if kind is Wait:
            assert isinstance(step, Wait)
            if step.token is not None:
                process.ear.wait(step, done)
            else:
                process.soon(int(step.seconds * US) + 1, done, None)
        elif kind is Listen:
            assert isinstance(step, Listen)
            process.ear.listen(step, done)
        elif kind is Later:
            assert isinstance(step, Later)
            process.later(step)
            done(None)
        elif kind is Reach:
            assert isinstance(step, Reach)
            process.reach(step, done)
        elif kind is Batch:
            assert isinstance(step, Batch)
            process.batch(step, done)
        elif kind is Post:
            assert isinstance(step, Post)
            process.post(step, done)
        else:
            assert isinstance(step, Call)
            if step.compensating:
                self._compensate(step, done)
            else:
                self._asked = process.call(step, done)

    def _compensate(self, step: Call, done: Done) -> None:
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


def clean(process: Process, call: Call) -> Steps[Any]:
    """What goes on behind a caller's back until it is done."""
    give_up, pause_s = process.clock() + PATIENCE_S, 0.05
    while True:
        try:
            return (yield call)
        except LockUnavailable:
            if process.clock() > give_up:
                raise
        yield Wait(pause_s)
        pause_s = min(pause_s * 2, 2.0)


def token_of(call: Call) -> bytes:
    """For whom a request that has a deadline takes something."""
    at = max(2, len(call.script.keys))  # (the heir, of who adopts)
    token: bytes = call.parts[at][:22] if len(call.parts) > 5 else call.parts[1]
    return token


def lock_of(call: Call) -> str:
    """The name of the lock that a call is about."""
    key: bytes = call.parts[0]
    return name_at(key)


def name_at(key: bytes) -> str:
    """The name of a lock, or of a job's place beside it, by its key."""
    return key.decode().partition("{")[2].replace("}", "")

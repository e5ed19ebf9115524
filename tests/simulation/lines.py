"""Connections for calls: two streams that keep their order, and the ends that processes have.

A reply has no address. An end takes it for what is owed to its oldest request, and checks its
proof, as the real drivers do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Protocol

from lualock._protocol import MIN_REQUEST_S, WAIT, RunScript
from lualock._transport import codec, errors
from lualock.errors import LockError
from tests.simulation import orphans
from tests.simulation.store import Refused
from tests.simulation.world import US
from tests.support.proving import proof_of

if TYPE_CHECKING:
    from tests.simulation.network import Process

TIMEOUT_S = 5.0
LAZY_US = 200_000
PING_AFTER_S = 2.0
"""How long a connection that is dead without a word may excuse anything: until its silence is
noticed (``sockets.silence_s``), and another connection is made."""

STRAY_ERROR = "LOADING"
"""What a broken proxy answers to another request than it was. (NOSCRIPT would be believed: a driver
sends the script at once, and does not make sure first that it was meant.)"""

Done = Callable[..., None]  # (reply, error=None)


class Sender(Protocol):
    """What sends a request, and is told what becomes of it."""

    @property
    def over(self) -> bool:
        """Whether the caller waits for the reply no more."""

    def forget(self) -> None:
        """The caller was interrupted."""

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """The line has a reply, or has broken."""


class NoCaller:
    """The sender of what is owed to another process, whose line was copied."""

    over = True

    def forget(self) -> None:
        """There is no caller."""

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """There is no caller to tell."""


class Sending:
    """A request as it was written once, and the proof that its reply begins with.

    ``call``: ``None`` for an echo, which proves that the replies before it were in order.
    """

    __slots__ = ("call", "proof", "sender", "whole", "words")

    def __init__(self, sender: Sender, call: RunScript | None, *, whole: bool = False) -> None:
        self.sender, self.call, self.whole = sender, call, whole
        self.proof: bytes
        self.words: tuple[bytes, ...]
        if call is None:
            self.proof, self.words = token_hex(8).encode(), ()
        else:
            self.proof, self.words = proof_of(call.script, call.parts)


Answer = tuple[Any, bytes]  # the reply as the server sent it, and the proof that it began with


class Opening:
    """A connection that is being opened. One for calls asks for the server's time first."""

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
        process.soon(int(max(left_s, MIN_REQUEST_S) * US), self._fail, TimeoutError("no answer"))
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
            self._failed(None, errors.connect_error(why, "sim"))


class Line:
    """An end of a connection: what its process has sent there, and what it is owed."""

    __slots__ = ("_held", "_unread", "link", "open", "owed", "process")

    def __init__(self, process: Process, link: Link | None = None) -> None:
        self.process = process
        self.link = link or Link(process)
        self.link.ends.append(self)
        self.open = True
        self.owed: deque[Sending] = deque()
        self._held: list[Sending] = []
        self._unread: list[Answer] = []  # a thread reads only while it is owed something

    def shared_with(self, child: Process) -> Line:
        """The same end in a forked child. The parent's callers are not there."""
        line = Line(child, self.link)
        for sending in self.owed:
            theirs = copy(sending)
            theirs.sender = NoCaller()
            line.owed.append(theirs)
        return line

    def send(
        self, sender: Sender, call: RunScript | None, *, whole: bool = False, hold: bool = False
    ) -> None:
        """Send a request; ``hold``: the kernel may keep it back for a moment."""
        sending = Sending(sender, call, whole=whole)
        self.owed.append(sending)
        if not self.process.threads:
            self.process.soon(int(TIMEOUT_S * US), self._silent, sending)
        if hold:
            self._held.append(sending)
            self.process.world.after(LAZY_US, self.flush)
            return
        self.flush()
        self._write(sending)
        if self._unread:
            self.process.soon(0, self._read)

    def _silent(self, sending: Sending) -> None:
        if sending in self.owed:
            self.close()

    def flush(self) -> None:
        """What was kept back leaves."""
        if self._held:
            held, self._held = self._held, []
            for sending in held:
                self.link.carry(self.process, sending)

    def _write(self, sending: Sending) -> None:
        world = self.process.world
        if world.torn is not None and world.torn.writes(self.process, sending.sender):
            self._tear(sending)
        else:
            self.link.carry(self.process, sending)

    def _tear(self, sending: Sending) -> None:
        """An interruption comes in the middle of a write: how much of it left is not known. In a
        loop it strikes the loop, not a task."""
        process, world = self.process, self.process.world
        torn, world.torn = world.torn, None
        world.fault("torn", who=process.name, lasts_us=US)
        whole = world.random.random() < 0.5
        if whole:
            self.link.carry(process, sending)
        if "torn" in world.server.bugs:
            self.link.goes_on(process, sending, whole)
            if process.threads:
                self.owed.remove(sending)
                process.put_back(self)
        else:
            self.close(but=sending if process.threads else None)
        if process.threads:
            assert torn is not None
            sending.sender.forget()
            torn.interrupt()

    def received(self, reply: Any, began: bytes) -> None:
        """The next reply has come: it is taken for what the oldest request is owed."""
        if not self.open:
            return
        if not self.owed:
            if self.process.threads:
                self._unread.append((reply, began))
            else:
                self._crossed()
            return
        sending = self.owed[0]
        if not isinstance(reply, Refused):  # an error proves nothing
            proof = began if "unproved" in self.process.world.server.bugs else sending.proof
            try:
                reply = codec.strip_proof(reply.copy() if type(reply) is list else reply, proof)
            except errors.CrossedReply:
                self._crossed()
                return
        self.owed.popleft()
        call = sending.call
        if type(reply) is list and reply[0] == b"queued" and call and call.script is WAIT:
            self.process.in_line(call)
        sending.sender.settle(sending, reply, None)

    def _read(self) -> None:
        while self._unread and self.owed and self.open:
            self.received(*self._unread.pop(0))

    def _crossed(self) -> None:
        """A reply that answers another request. Without a fault that did that it is a bug, though
        one that the proof made harmless."""
        world = self.process.world
        if not self.link.crossed:
            world.wrong("order", f"{self.process.name} lost the order of a connection's replies")
        world.fault("cut", who=self.process.name, lasts_us=US)
        self.close()

    def close(self, *, but: Sending | None = None) -> None:
        """Its process has closed it, or sees that it is closed. What it sent may still arrive.
        ``but``: whose sender knows it already."""
        if not self.open:
            return
        self.flush()
        self.open = False
        self.link.ends.remove(self)
        self.process.forget_line(self)
        owed, self.owed = self.owed, deque()
        why = errors.lost_reply_error(ConnectionResetError("reset"), "sim")
        for sending in owed:
            if sending is not but:
                sending.sender.settle(sending, None, why)


class Link:
    """A connection for calls, between its ends and the server. Both streams keep their order,
    unless a broken proxy crosses them."""

    __slots__ = (
        *("_kept", "_replies", "_replies_at", "_requests", "_requests_at", "_silenced"),
        *("_cut", "_swallows", "_world", "alive", "crossed", "ends"),
    )

    def __init__(self, process: Process) -> None:
        self._world = process.world
        self.ends: list[Line] = []
        self.alive = True  # what is sent arrives
        self.crossed = False  # a fault changed the order of its replies
        self._silenced = False  # no reply arrives, and its process does not know
        self._cut = False  # what is sent from now on is lost, and its process learns that
        self._swallows = False
        self._requests: deque[tuple[Process, Sending]] = deque()
        self._replies: deque[Answer] = deque()
        self._kept: list[Answer] = []  # they come behind the next one
        self._requests_at = self._replies_at = 0
        self._world.server.links.append(self)

    def carry(self, process: Process, sending: Sending) -> None:
        """A request leaves."""
        world = self._world
        if self._swallows or self._cut:
            self._swallows = False
            return
        at = self._requests_at = process.arrival(self._requests_at)
        fate = world.fate() if world.flaky else ""
        if self._silenced:
            world.fault("silent", who=process.name, lasts_us=int(PING_AFTER_S * US))
        if fate == "late":
            # It takes its time on a connection that its process sees closed at once.
            world.fault("cut", who=process.name, lasts_us=US)
            self._cut = True
            world.after(world.latency_us, self.broken, False)
            late = at + int(world.random.random() * 8 * US)
            world.at(late, self._arrive_late, process, sending)
        elif fate == "lost":
            world.fault("cut", who=process.name, lasts_us=US)
            self._cut = True
            world.after(world.latency_us, self.broken)
        elif fate == "mute":
            world.fault("silent", who=process.name, lasts_us=int(PING_AFTER_S * US))
            # No request arrives any more, and its process learns nothing.
            self.alive, self._silenced = False, True
        elif fate == "slow":
            self._requests_at = at = at + int(world.random.random() * 4 * US)
            world.fault("slow", who=process.name, lasts_us=at - world.now)
            self._arrives(at, process, sending)
        elif fate == "deaf":
            at += int(max(0.0, world.random.random() * 2 - 1) * 4 * US)
            world.fault("silent", who=process.name, lasts_us=int(PING_AFTER_S * US))
            self.alive, self._silenced = False, True  # it does arrive, and nothing else does
            world.at(at, self._arrive_late, process, sending)
        else:
            self._arrives(at, process, sending)
            if fate == "unheard":
                world.fault("cut", who=process.name, lasts_us=US)
                world.at(at, self.broken)

    def goes_on(self, process: Process, sending: Sending, whole: bool) -> None:
        """After a write that was interrupted: it is written once more; or a part of it has left,
        and takes what is sent next for its rest."""
        if whole:
            self.carry(process, sending)
        else:
            self._swallows = True

    def _arrives(self, at: int, process: Process, sending: Sending) -> None:
        # Whatever moves these moments, the stream keeps its order: each takes what is next.
        self._requests.append((process, sending))
        self._world.at(at, self._arrive)

    def _arrive(self) -> None:
        world = self._world
        server = world.server
        if world.now < server.stalled_until and self.alive and not server.down:
            at = server.stalled_until + int(world.random.random() * 50)
            self._requests_at = at = max(at, self._requests_at)
            world.at(at, self._arrive)
            return
        process, sending = self._requests.popleft()
        if self.alive and not server.down:
            self._run(process, sending)

    def _arrive_late(self, process: Process, sending: Sending) -> None:
        """What was sent on a connection that is none any more arrives."""
        server = self._world.server
        if self._world.now < server.stalled_until and not server.down:
            at = server.stalled_until + int(self._world.random.random() * 50)
            self._world.at(at, self._arrive_late, process, sending)
        elif not server.down:
            self._run(process, sending)

    def _run(self, process: Process, sending: Sending) -> None:
        call, sender = sending.call, sending.sender
        if call is None:
            self._reply(process, sending.proof, sending.proof)
            return
        if sender.over or process.dead:
            orphans.runs(process, call)
        reply, said = self._world.server.execute(call, sending.whole, sending.proof, sending.words)
        if sender.over or process.dead:
            orphans.ran(process, call, said)
        self._reply(process, reply, sending.proof)

    def _reply(self, process: Process, reply: Any, proof: bytes) -> None:
        """A reply leaves, or what a broken proxy makes of it."""
        if not self.alive:
            return
        world = self._world
        leaves = [(reply, proof)]
        if world.crossing and world.random.random() < world.crossing:
            leaves = self._cross(process, reply, proof)
        elif self._kept:
            leaves += self._kept
            self._kept = []
        for answer in leaves:
            at = self._replies_at = process.arrival(self._replies_at)
            self._replies.append(answer)
            world.at(at, self._deliver)

    def _cross(self, process: Process, reply: Any, proof: bytes) -> list[Answer]:
        """One reply is dropped, doubled, comes behind the next one, or behind a stray error.

        An error proves nothing. So one that is doubled, where another reply was dropped, is
        believed (seed 260305: a NOSCRIPT, and the request runs twice): a limit, and left out.
        """
        world = self._world
        self.crossed = True
        world.fault("crossed", who=process.name, lasts_us=int(PING_AFTER_S * US))
        how = world.random.choice(("drops", "doubles", "swaps", "strays"))
        if how == "drops":
            return []
        if how == "doubles":
            return [(reply, proof)] * (1 if isinstance(reply, Refused) else 2)
        if how == "swaps":
            self._kept.append((reply, proof))
            return []
        return [(Refused(STRAY_ERROR), b""), (reply, proof)]

    def _deliver(self) -> None:
        ends, world = self.ends, self._world
        if len(ends) > 1:  # whichever reads first; a child that has done nothing yet does not
            ends = [end for end in ends if not end.process.forked]
            ends = [end for end in ends if end.owed] or ends
            ends = [world.random.choice(ends)]
        for end in ends:
            if world.now < end.process.paused_until and not end.process.dead:
                world.at(end.process.paused_until, self._deliver)
                return
        answer = self._replies.popleft()
        for end in ends:
            end.process._act(end.received, answer)

    def broken(self, both: bool = True) -> None:
        """The connection is cut; its processes notice a moment later."""
        if both:
            self.alive = False
        for end in self.ends:
            end.process.soon(self._world.latency_us, end.close)

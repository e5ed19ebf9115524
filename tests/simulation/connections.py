"""Connections for calls: two streams that keep their order, and the ends of the processes.

A reply has no address. An end takes it for the reply to its oldest request, and checks its proof,
as the real drivers do.
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
HOLD_US = 200_000
"""How long the kernel holds back a request that was sent with ``MSG_MORE``."""

PING_AFTER_S = 2.0
"""How long a silently dead connection may excuse anything: until the silence is noticed
(``sockets.silence_s``) and another connection is open."""

STRAY_ERROR = "LOADING"
"""The error that a broken proxy adds. (Not NOSCRIPT: a driver believes that without a proof, and
sends the script again.)"""

Done = Callable[..., None]  # (reply, error=None)


class Sender(Protocol):
    """The sender of a request, which gets the reply or the error."""

    @property
    def over(self) -> bool:
        """Whether the caller has stopped waiting for the reply."""

    def forget(self) -> None:
        """Note that the caller was interrupted."""

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """Take a reply of the connection, or its end."""


class NoCaller:
    """The sender, in a forked child, of the requests of its parent."""

    over = True

    def forget(self) -> None:
        """Do nothing: there is no caller."""

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """Do nothing: there is no caller."""


class Sending:
    """A request as it was written once, and the proof with which its reply begins.

    ``call``: ``None`` for an echo, which proves that the earlier replies were in order.
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


Answer = tuple[Any, bytes]  # a reply as the server sent it, and the proof with which it began


class Opening:
    """A connection that is being opened. One for calls reads the server's time first."""

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
            refused = ConnectionRefusedError("refused")
            process.soon(world.latency_us, self._fail, refused)
        elif world.now < world.server.stalled_until:
            # The kernel accepts connections, but the server does not answer on them.
            world.at(world.server.stalled_until, self._knock)
        else:
            world.at(process.arrival(0), process._act, self._shaken, ())

    def _shaken(self) -> None:
        process = self._process
        if self._over:
            return
        if self._calls:
            process.world.at(process.arrival(0), self._time_requested, process.clock())
        else:
            self._open()

    def _time_requested(self, sent: float) -> None:
        process, world = self._process, self._process.world
        server = world.server
        if server.down:
            process.soon(world.latency_us, self._fail, ConnectionResetError("reset"))
        elif world.now < server.stalled_until:
            world.at(server.stalled_until, self._time_requested, sent)
        else:
            answer = sent, server.clock_us()
            world.at(process.arrival(0), process._act, self._time_received, answer)

    def _time_received(self, sent: float, server_us: int) -> None:
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


class Connection:
    """A process's end of a connection, with the requests that have no reply yet."""

    __slots__ = ("_held", "_unread", "link", "open", "process", "unanswered")

    def __init__(self, process: Process, link: Link | None = None) -> None:
        self.process = process
        self.link = link or Link(process)
        self.link.ends.append(self)
        self.open = True
        self.unanswered: deque[Sending] = deque()
        self._held: list[Sending] = []
        self._unread: list[Answer] = []  # a thread reads only while it waits for a reply

    def shared_with(self, child: Process) -> Connection:
        """Return the same end in a forked child, where the parent's callers do not exist."""
        connection = Connection(child, self.link)
        for sending in self.unanswered:
            theirs = copy(sending)
            theirs.sender = NoCaller()
            connection.unanswered.append(theirs)
        return connection

    def send(
        self, sender: Sender, call: RunScript | None, *, whole: bool = False, hold: bool = False
    ) -> None:
        """Send a request. ``hold``: the kernel may hold it back for a moment."""
        sending = Sending(sender, call, whole=whole)
        self.unanswered.append(sending)
        if not self.process.threads:
            self.process.soon(int(TIMEOUT_S * US), self._silent, sending)
        if hold:
            self._held.append(sending)
            self.process.world.after(HOLD_US, self.flush)
            return
        self.flush()
        self._write(sending)
        if self._unread:
            self.process.soon(0, self._read)

    def _silent(self, sending: Sending) -> None:
        if sending in self.unanswered:
            self.close()

    def flush(self) -> None:
        """Send what was held back."""
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
        """Interrupt a write: it is not known how much of the request left. In a loop this
        interrupts the loop, not a task."""
        process, world = self.process, self.process.world
        torn, world.torn = world.torn, None
        world.fault("torn", process=process.name, lasts_us=US)
        whole = world.random.random() < 0.5
        if whole:
            self.link.carry(process, sending)
        if "torn" in world.server.bugs:
            self.link.write_again(process, sending, whole)
            if process.threads:
                self.unanswered.remove(sending)
                process.put_back(self)
        else:
            self.close(but=sending if process.threads else None)
        if process.threads:
            assert torn is not None
            sending.sender.forget()
            torn.interrupt()

    def received(self, reply: Any, began: bytes) -> None:
        """Take the next reply as the reply to the oldest request."""
        if not self.open:
            return
        if not self.unanswered:
            if self.process.threads:
                self._unread.append((reply, began))
            else:
                self._crossed()
            return
        sending = self.unanswered[0]
        if not isinstance(reply, Refused):  # an error proves nothing
            proof = began if "unproved" in self.process.world.server.bugs else sending.proof
            try:
                reply = codec.strip_proof(reply.copy() if type(reply) is list else reply, proof)
            except errors.CrossedReply:
                self._crossed()
                return
        self.unanswered.popleft()
        call = sending.call
        if type(reply) is list and reply[0] == b"queued" and call and call.script is WAIT:
            self.process.note_queued(call)
        sending.sender.settle(sending, reply, None)

    def _read(self) -> None:
        while self._unread and self.unanswered and self.open:
            self.received(*self._unread.pop(0))

    def _crossed(self) -> None:
        """Close: a reply answers another request. If no fault crossed the replies, this is a bug
        that the proof made harmless."""
        world = self.process.world
        if not self.link.crossed:
            world.wrong("order", f"{self.process.name} lost the order of a connection's replies")
        world.fault("cut", process=self.process.name, lasts_us=US)
        self.close()

    def close(self, *, but: Sending | None = None) -> None:
        """Close this end; what was sent may still arrive. ``but``: a request whose sender knows it
        already."""
        if not self.open:
            return
        self.flush()
        self.open = False
        self.link.ends.remove(self)
        self.process.forget_connection(self)
        unanswered, self.unanswered = self.unanswered, deque()
        why = errors.lost_reply_error(ConnectionResetError("reset"), "sim")
        for sending in unanswered:
            if sending is not but:
                sending.sender.settle(sending, None, why)


class Link:
    """The two streams between the ends of a connection and the server. Each keeps its order,
    unless a broken proxy crosses it."""

    __slots__ = (
        *("_kept", "_replies", "_replies_at", "_requests", "_requests_at", "_silenced"),
        *("_cut", "_loses_next", "_world", "alive", "crossed", "ends"),
    )

    def __init__(self, process: Process) -> None:
        self._world = process.world
        self.ends: list[Connection] = []
        self.alive = True  # whether what is sent arrives
        self.crossed = False  # whether a fault changed the order of its replies
        self._silenced = False  # whether no reply arrives, and its process does not know
        self._cut = False  # whether later requests are lost, and its process notices
        self._loses_next = False
        self._requests: deque[tuple[Process, Sending]] = deque()
        self._replies: deque[Answer] = deque()
        self._kept: list[Answer] = []  # replies that are sent after the next one
        self._requests_at = self._replies_at = 0
        self._world.server.links.append(self)

    def carry(self, process: Process, sending: Sending) -> None:
        """Send a request to the server, unless a fault decides otherwise."""
        world = self._world
        if self._loses_next or self._cut:
            self._loses_next = False
            return
        at = self._requests_at = process.arrival(self._requests_at)
        fate = world.fate() if world.flaky else ""
        if self._silenced:
            world.fault("silent", process=process.name, lasts_us=int(PING_AFTER_S * US))
        if fate == "late":
            # It is slow on a connection that its process sees closed at once.
            world.fault("cut", process=process.name, lasts_us=US)
            self._cut = True
            world.after(world.latency_us, self.broken, False)
            late = at + int(world.random.random() * 8 * US)
            world.at(late, self._arrive_late, process, sending)
        elif fate == "lost":
            world.fault("cut", process=process.name, lasts_us=US)
            self._cut = True
            world.after(world.latency_us, self.broken)
        elif fate == "silent":
            world.fault("silent", process=process.name, lasts_us=int(PING_AFTER_S * US))
            # No later request arrives, and its process does not notice.
            self.alive, self._silenced = False, True
        elif fate == "slow":
            self._requests_at = at = at + int(world.random.random() * 4 * US)
            world.fault("slow", process=process.name, lasts_us=at - world.now)
            self._arrives(at, process, sending)
        elif fate == "no_reply":
            at += int(max(0.0, world.random.random() * 2 - 1) * 4 * US)
            world.fault("silent", process=process.name, lasts_us=int(PING_AFTER_S * US))
            self.alive, self._silenced = (
                False,
                True,
            )  # this request arrives, but no other request and no reply
            world.at(at, self._arrive_late, process, sending)
        else:
            self._arrives(at, process, sending)
            if fate == "reply_lost":
                world.fault("cut", process=process.name, lasts_us=US)
                world.at(at, self.broken)

    def write_again(self, process: Process, sending: Sending, whole: bool) -> None:
        """Use the connection after an interrupted write (a planted bug): the request is written
        twice; or a part of it has left, and the next request is taken for the rest."""
        if whole:
            self.carry(process, sending)
        else:
            self._loses_next = True

    def _arrives(self, at: int, process: Process, sending: Sending) -> None:
        # The stream keeps its order whatever the times: each arrival takes the next request.
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
        """Run a request that was sent on a connection which has ended since."""
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
            orphans.about_to_run(process, call)
        reply, answer = self._world.server.execute(
            call, sending.whole, sending.proof, sending.words
        )
        if sender.over or process.dead:
            orphans.has_run(process, call, answer)
        self._reply(process, reply, sending.proof)

    def _reply(self, process: Process, reply: Any, proof: bytes) -> None:
        """Send a reply, or what a broken proxy makes of it."""
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
        """Drop a reply, double it, send it after the next one, or send a stray error before it.

        An error proves nothing. If one is doubled and another reply was dropped, the driver
        believes the copy: a NOSCRIPT makes a request run twice. This known limit is left out.
        """
        world = self._world
        self.crossed = True
        world.fault("crossed", process=process.name, lasts_us=int(PING_AFTER_S * US))
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
        if len(ends) > 1:  # any of them may read first, but not a child that has done nothing yet
            ends = [end for end in ends if not end.process.forked]
            ends = [end for end in ends if end.unanswered] or ends
            ends = [world.random.choice(ends)]
        for end in ends:
            if world.now < end.process.paused_until and not end.process.dead:
                world.at(end.process.paused_until, self._deliver)
                return
        answer = self._replies.popleft()
        for end in ends:
            end.process._act(end.received, answer)

    def broken(self, both: bool = True) -> None:
        """Cut the connection; its processes notice a moment later."""
        if both:
            self.alive = False
        for end in self.ends:
            end.process.soon(self._world.latency_us, end.close)

"""Requests and their replies: what waits for them, and sends them again where none comes.

After ``sockets.silence_s`` without a reply a request is sent on another connection, too. The first
answer counts; the other connection is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lualock._protocol import MIN_REQUEST_S, RunScript
from lualock._transport import errors, sockets
from lualock.errors import LockError
from tests.simulation.lines import TIMEOUT_S, Done, Line, Sending
from tests.simulation.store import Refused
from tests.simulation.world import US

if TYPE_CHECKING:
    from tests.simulation.network import Process


QUICK_S = 0.1
"""How long after the silence was noticed there must be an answer, in a network that works."""


class Way:
    """Some calls as they were sent on one line, and the replies that came by it."""

    __slots__ = ("asked", "at", "dropped", "error", "line", "replies")

    def __init__(self, asked: Asked, line: Line, at: list[int]) -> None:
        self.asked, self.line = asked, line
        self.at = at  # which of the calls
        self.replies: list[Any] = []
        self.error: LockError | None = None
        self.dropped = False  # the other one answered first

    @property
    def over(self) -> bool:
        """Whether the caller waits for these replies no more."""
        return self.dropped or self.asked.over

    def forget(self) -> None:
        """The caller was interrupted."""
        self.asked.over = True

    @property
    def complete(self) -> bool:
        """Whether all replies have come."""
        return len(self.replies) == len(self.at)

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """What the line has for us."""
        if self.over:
            return
        if error is not None:
            self.error = error
        else:
            self.replies.append(reply)
        if error is not None or self.complete:
            self.asked.heard(self)


class _Echo:
    """Makes sure that errors were answers to these calls."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    @property
    def over(self) -> bool:
        """Whether the caller waits no more."""
        return self._asked.over

    def forget(self) -> None:
        """The caller was interrupted."""
        self._asked.over = True

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """What the line has for us."""
        self._asked.proved(error)


class Asked:
    """Calls that are sent in one piece, and whose caller waits for the replies.

    ``posted``: the caller goes on; but a lazy call is sent again, too, where no reply comes.
    """

    __slots__ = (
        *("_calls", "_done", "_end", "_opening", "_posted", "_quick", "_repeated", "_round"),
        *("_until", "_ways", "line", "over", "process", "replies"),
    )

    def __init__(
        self,
        process: Process,
        calls: list[RunScript],
        until: float | None,
        done: Done,
        *,
        posted: bool = False,
    ) -> None:
        self.process = process
        self.replies: list[Any] = [None] * len(calls)
        self.line: Line | None = None  # what it was sent on first, then what answered
        self.over = False
        self._calls, self._until, self._done, self._posted = calls, until, done, posted
        self._ways: list[Way] = []
        self._round = 0
        self._opening = False  # another connection
        self._repeated = False  # on that one
        self._end = 0.0
        self._quick: tuple[float, float, int] | None = None

    def ask(self, line: Line) -> None:
        """There is a line."""
        if self.over:  # interrupted meanwhile
            self.process.put_back(line)
            return
        if not self.process.threads:
            for call in self._calls:
                call.via = line
        self._send(line, list(range(len(self._calls))))

    def post(self, line: Line) -> None:
        """Send it, and go on."""
        self._send(line, [0], whole=self._calls[0].lazy)

    def _left_s(self) -> float:
        if self._until is None:
            return TIMEOUT_S
        return min(TIMEOUT_S, max(MIN_REQUEST_S, self._until - self.process.clock()))

    def _send(self, line: Line, at: list[int], *, whole: bool = False) -> None:
        process = self.process
        self.line, self._round = line, self._round + 1
        left_s = self._left_s()
        self._end = process.clock() + left_s
        process.soon(int(left_s * US) + 1, self._late, self._round)
        silent_s = sockets.silence_s(left_s)
        if silent_s < left_s:
            process.soon(int(silent_s * US) + 1, self._silent, self._round)
        if self._quick is None and silent_s + QUICK_S < left_s:
            now = process.clock()
            self._quick = now, now + silent_s + QUICK_S, process.world.faults["silent"]
        self._ways = []
        self._go(line, at, whole=whole)

    def _go(self, line: Line, at: list[int], *, whole: bool = False) -> None:
        way = Way(self, line, at)
        self._ways.append(way)
        for place, number in enumerate(at):
            if line.open and not way.over:
                line.send(way, self._calls[number], whole=whole and not place)

    def _silent(self, turn: int) -> None:
        """Nothing has come for a while: the line may be dead without a word."""
        if self.over or turn != self._round or not self._ways:
            return
        (way,) = self._ways
        if self._posted and not self._calls[0].lazy:
            return  # a waiter looks again, and that is sent again
        process, now = self.process, self.process.clock()
        if "patient" in process.world.server.bugs:
            return
        for number in way.at:
            self._calls[number].doubled, self._calls[number].via = True, None
        self._opening = self._repeated = True
        until = min(self._end, now + sockets.silence_s(self._end - now))

        def ready(line: Line) -> None:
            self._opening = False
            if self.over or turn != self._round:
                process.not_needed(line)
                return
            self._go(line, way.at)
            self._look()

        def failed(_: Any, error: LockError) -> None:
            self._opening = False
            if not self.over and turn == self._round:
                self._look()

        process.beside(way.line, until, ready, failed)

    def heard(self, way: Way) -> None:
        """All that a line has for us, or what broke it."""
        if not self._opening:  # else it is looked at when that is done
            self._look()

    def _look(self) -> None:
        for way in list(self._ways):
            if way.complete:
                self._answered(way)
                return
        for way in list(self._ways):
            if way.error is not None:
                self._ways.remove(way)
                if not self._ways:
                    self.process.drop(way.line)
                    self._finish(way.error)
                    return

    def _answered(self, way: Way) -> None:
        """This way was the first."""
        process = self.process
        ways, self._ways = self._ways, []
        self.line = way.line
        for other in ways:
            other.dropped = True
        if len(ways) > 1:
            process.answered(way.line, ways[0].line, ways[-1].line)
        for number, reply in zip(way.at, way.replies, strict=True):
            self.replies[number] = reply
        again = [number for number in way.at if _is_noscript(self.replies[number])]
        if self._posted and any(self._calls[number].moot for number in again):
            return
        if again:
            self._send(way.line, again, whole=True)
        elif any(isinstance(reply, Refused) for reply in self.replies) and self._proves:
            self._round += 1
            left_s = self._left_s()
            if process.threads:
                left_s = min(left_s, sockets.silence_s(left_s))
            process.soon(int(left_s * US) + 1, self._late, self._round)
            way.line.send(_Echo(self), None)
        else:
            self._finish(None)

    @property
    def _proves(self) -> bool:
        return not self._posted and "unproved" not in self.process.world.server.bugs

    def proved(self, error: LockError | None) -> None:
        """The order of replies was kept, or is not known."""
        if not self.over:
            self._finish(error)

    def _late(self, turn: int) -> None:
        """The replies did not come in time."""
        if self.over or turn != self._round or self._posted:
            return
        self._finish(errors.lost_reply_error(TimeoutError("the time was over"), "sim"))
        if self.process.threads:
            assert self.line is not None
            self.process.drop(self.line)
            for way in self._ways:
                way.line.close()

    def interrupt(self) -> None:
        """The caller is interrupted."""
        if self.over:
            return
        self.over = True
        if self.process.threads:
            for line in (self.line, *(way.line for way in self._ways)):
                if line is not None:
                    line.close()

    def finish(self, _: Any, error: LockError) -> None:
        """No connection could be made."""
        self._finish(error)

    def _finish(self, error: LockError | None) -> None:
        if self.over:
            return
        self.over = True
        self._check_quick(error)
        if error is None and self.line is not None:
            self.process.put_back(self.line)
        self._done(self.replies, error)

    def _check_quick(self, error: LockError | None) -> None:
        """A line that is dead without a word, and nothing else, costs little time."""
        if self._quick is None or self._posted:
            return
        began, due, silent = self._quick
        world, now = self.process.world, self.process.clock()
        if world.faults["silent"] > silent + 1 or world.shaken(self.process.name, now - began):
            return
        if now > due or (error is not None and self._repeated):
            world.wrong("silence", f"a silent line cost {now - began:.3f} s: {error or 'no error'}")


def _is_noscript(reply: Any) -> bool:
    return isinstance(reply, Refused) and str(reply).startswith("NOSCRIPT")


def answer(reply: Any, call: RunScript) -> Any:
    """A reply: itself, or the error that it means."""
    return errors.reply_error(str(reply), call) if isinstance(reply, Refused) else reply


class Owed:
    """The reply to a posted call: the protocol's ``Pending``."""

    def __init__(self, process: Process, call: RunScript, posted: float) -> None:
        self.call = call
        self.posted = posted  # before there was a line
        self.process = process
        self.over = False
        self._reply: Any = None
        self._error: LockError | None = None

    def forget(self) -> None:
        """The caller was interrupted."""
        self.over = True

    @property
    def reply(self) -> Any:
        """What came, if it has."""
        return self._reply

    @property
    def answered(self) -> bool:
        """Whether the reply has come."""
        return self._reply is not None

    def poll(self) -> Any:
        """See :class:`lualock._protocol.Pending`."""
        if self._error is not None:
            raise self._error
        if isinstance(self._reply, Refused):
            raise errors.reply_error(str(self._reply), self.call)
        return self._reply


class OwedByLine(Owed):
    """In a thread: it is read when its line is next used, or polled."""

    def __init__(self, line: Line, call: RunScript, posted: float, *, hold: bool) -> None:
        super().__init__(line.process, call, posted)
        self._line = line
        self._resend = False
        call.via = self
        line.send(self, call, whole=call.lazy, hold=hold)

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """What the line has for us."""
        if _is_noscript(reply) and not self.call.moot:
            self._resend = True  # when it is polled
            return
        self._reply, self._error = reply, error
        self.over = error is not None

    def poll(self) -> Any:
        """See :class:`lualock._protocol.Pending`."""
        if self._reply is None and self._error is None:
            if self._resend and not self._line.open:
                raise errors.lost_reply_error(ConnectionResetError("reset"), "sim")
            self._line.flush()
            if self._resend:
                self._resend = False
                self._line.send(self, self.call, whole=True)
        return super().poll()


class OwedInLoop(Owed):
    """In a loop: it is read when it comes. A lazy one is sent again where no reply comes; of
    another one its waiter asks again on its own."""

    def __init__(self, line: Line, call: RunScript, posted: float) -> None:
        super().__init__(line.process, call, posted)
        call.via = line
        self._asked = Asked(line.process, [call], None, self._settle, posted=True)
        self._asked.post(line)

    def _settle(self, replies: list[Any], error: LockError | None) -> None:
        (self._reply,) = replies
        self._error = error
        self.over = error is not None

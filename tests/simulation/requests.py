"""Requests and their replies: wait for a reply, and send the request again if none comes.

After ``sockets.silence_s`` without a reply a request is also sent on another connection. The first
reply counts; the other connection is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lualock._protocol import MIN_REQUEST_S, RunScript
from lualock._transport import errors, sockets
from lualock.errors import LockError
from tests.simulation.connections import TIMEOUT_S, Connection, Done, Sending
from tests.simulation.store import Refused
from tests.simulation.world import US

if TYPE_CHECKING:
    from tests.simulation.network import Process


QUICK_S = 0.1
"""Within what time after the silence was noticed a working network must deliver a reply."""


class SentCopy:
    """The calls of a request as sent on one connection, and the replies that came on it."""

    __slots__ = ("at", "connection", "dropped", "error", "replies", "request")

    def __init__(self, request: Request, connection: Connection, at: list[int]) -> None:
        self.request, self.connection = request, connection
        self.at = at  # the numbers of the calls
        self.replies: list[Any] = []
        self.error: LockError | None = None
        self.dropped = False  # the other copy was answered first

    @property
    def over(self) -> bool:
        """Whether the caller has stopped waiting for these replies."""
        return self.dropped or self.request.over

    def forget(self) -> None:
        """Note that the caller was interrupted."""
        self.request.over = True

    @property
    def complete(self) -> bool:
        """Whether all replies have come."""
        return len(self.replies) == len(self.at)

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """Take a reply of the connection, or its end."""
        if self.over:
            return
        if error is not None:
            self.error = error
        else:
            self.replies.append(reply)
        if error is not None or self.complete:
            self.request.copy_done(self)


class _Echo:
    """An echo behind an error reply: it proves that the error answered these calls."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def over(self) -> bool:
        """Whether the caller has stopped waiting."""
        return self._request.over

    def forget(self) -> None:
        """Note that the caller was interrupted."""
        self._request.over = True

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """Take a reply of the connection, or its end."""
        self._request.proved(error)


class Request:
    """Calls that are sent in one piece, and whose caller waits for the replies.

    ``posted``: the caller does not wait. A lazy call is sent again even so if no reply comes.
    """

    __slots__ = (
        *("_calls", "_copies", "_done", "_end", "_opening", "_posted", "_quick", "_repeated"),
        *("_round", "_until", "connection", "over", "process", "replies"),
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
        self.connection: Connection | None = None  # the first one used, then the one that answered
        self.over = False
        self._calls, self._until, self._done, self._posted = calls, until, done, posted
        self._copies: list[SentCopy] = []
        self._round = 0
        self._opening = False  # whether another connection is being opened
        self._repeated = False  # whether the request was sent on that one
        self._end = 0.0
        self._quick: tuple[float, float, int] | None = None

    def send(self, connection: Connection) -> None:
        """Send the calls on this connection."""
        if self.over:  # interrupted meanwhile
            self.process.put_back(connection)
            return
        if not self.process.threads:
            for call in self._calls:
                call.via = connection
        self._stamp()
        self._send_calls(connection, list(range(len(self._calls))))

    def post(self, connection: Connection) -> None:
        """Send the call without waiting."""
        self._stamp()
        self._send_calls(connection, [0], whole=self._calls[0].lazy)

    def _stamp(self) -> None:
        for call in self._calls:
            self.process.stamp(call)

    def _left_s(self) -> float:
        if self._until is None:
            return TIMEOUT_S
        return min(TIMEOUT_S, max(MIN_REQUEST_S, self._until - self.process.clock()))

    def _send_calls(self, connection: Connection, at: list[int], *, whole: bool = False) -> None:
        process = self.process
        self.connection, self._round = connection, self._round + 1
        left_s = self._left_s()
        self._end = process.clock() + left_s
        process.soon(int(left_s * US) + 1, self._late, self._round)
        silent_s = sockets.silence_s(left_s)
        if silent_s < left_s:
            process.soon(int(silent_s * US) + 1, self._silent, self._round)
        if self._quick is None and silent_s + QUICK_S < left_s:
            now = process.clock()
            self._quick = now, now + silent_s + QUICK_S, process.world.faults["silent"]
        self._copies = []
        self._send_copy(connection, at, whole=whole)

    def _send_copy(self, connection: Connection, at: list[int], *, whole: bool = False) -> None:
        sent = SentCopy(self, connection, at)
        self._copies.append(sent)
        for place, number in enumerate(at):
            if connection.open and not sent.over:
                connection.send(sent, self._calls[number], whole=whole and not place)

    def _silent(self, round_number: int) -> None:
        """Send the calls on another connection: this one may be silently dead."""
        if self.over or round_number != self._round or not self._copies:
            return
        (sent,) = self._copies
        if self._posted and not self._calls[0].lazy:
            return  # the waiter checks the queue later, and that request is repeated
        process, now = self.process, self.process.clock()
        if "patient" in process.world.server.bugs:
            return
        for number in sent.at:
            self._calls[number].doubled, self._calls[number].via = True, None
        self._opening = self._repeated = True
        until = min(self._end, now + sockets.silence_s(self._end - now))

        def ready(connection: Connection) -> None:
            self._opening = False
            if self.over or round_number != self._round:
                process.not_needed(connection)
                return
            self._send_copy(connection, sent.at)
            self._check_copies()

        def failed(_: Any, error: LockError) -> None:
            self._opening = False
            if not self.over and round_number == self._round:
                self._check_copies()

        process.beside(sent.connection, until, ready, failed)

    def copy_done(self, sent: SentCopy) -> None:
        """Take note: all replies of a copy have come, or its connection broke."""
        if not self._opening:  # otherwise ``_silent`` checks once it is open
            self._check_copies()

    def _check_copies(self) -> None:
        for sent in list(self._copies):
            if sent.complete:
                self._answered(sent)
                return
        for sent in list(self._copies):
            if sent.error is not None:
                self._copies.remove(sent)
                if not self._copies:
                    self.process.drop(sent.connection)
                    self._finish(sent.error)
                    return

    def _answered(self, sent: SentCopy) -> None:
        """Take the replies of the copy that was answered first."""
        process = self.process
        copies, self._copies = self._copies, []
        self.connection = sent.connection
        for other in copies:
            other.dropped = True
        if len(copies) > 1:
            process.answered(sent.connection, copies[0].connection, copies[-1].connection)
        for number, reply in zip(sent.at, sent.replies, strict=True):
            self.replies[number] = reply
        again = [number for number in sent.at if _is_noscript(self.replies[number])]
        if self._posted and any(self._calls[number].moot for number in again):
            return
        if again:
            self._send_calls(sent.connection, again, whole=True)
        elif any(isinstance(reply, Refused) for reply in self.replies) and self._proves:
            self._round += 1
            left_s = self._left_s()
            if process.threads:
                left_s = min(left_s, sockets.silence_s(left_s))
            process.soon(int(left_s * US) + 1, self._late, self._round)
            sent.connection.send(_Echo(self), None)
        else:
            self._finish(None)

    @property
    def _proves(self) -> bool:
        return not self._posted and "unproved" not in self.process.world.server.bugs

    def proved(self, error: LockError | None) -> None:
        """Finish: the echo came, so the order was kept; or the connection broke."""
        if not self.over:
            self._finish(error)

    def _late(self, round_number: int) -> None:
        """Finish: the replies did not come in time."""
        if self.over or round_number != self._round or self._posted:
            return
        self._finish(errors.lost_reply_error(TimeoutError("the time was over"), "sim"))
        if self.process.threads:
            assert self.connection is not None
            self.process.drop(self.connection)
            for sent in self._copies:
                sent.connection.close()

    def interrupt(self) -> None:
        """Stop waiting: the caller is interrupted."""
        if self.over:
            return
        self.over = True
        if self.process.threads:
            for connection in (self.connection, *(sent.connection for sent in self._copies)):
                if connection is not None:
                    connection.close()

    def finish(self, _: Any, error: LockError) -> None:
        """Finish: no connection could be opened."""
        self._finish(error)

    def _finish(self, error: LockError | None) -> None:
        if self.over:
            return
        self.over = True
        self._check_quick(error)
        if error is None and self.connection is not None:
            self.process.put_back(self.connection)
        self._done(self.replies, error)

    def _check_quick(self, error: LockError | None) -> None:
        """Report a violation if one silently dead connection, without another fault, cost much."""
        if self._quick is None or self._posted:
            return
        began, due, silent = self._quick
        world, now = self.process.world, self.process.clock()
        if world.faults["silent"] > silent + 1 or world.shaken(self.process.name, now - began):
            return
        if now > due or (error is not None and self._repeated):
            world.wrong(
                "silence", f"a silent connection cost {now - began:.3f} s: {error or 'no error'}"
            )


def _is_noscript(reply: Any) -> bool:
    return isinstance(reply, Refused) and str(reply).startswith("NOSCRIPT")


def answer(reply: Any, call: RunScript) -> Any:
    """Return a reply, or the error that it means."""
    return errors.reply_error(str(reply), call) if isinstance(reply, Refused) else reply


class SentReply:
    """The reply to a posted call: implements the protocol's ``Pending``."""

    def __init__(self, process: Process, call: RunScript, posted: float) -> None:
        self.call = call
        self.posted = posted  # the time before a connection was chosen
        self.process = process
        self.over = False
        self._reply: Any = None
        self._error: LockError | None = None

    def forget(self) -> None:
        """Note that the caller was interrupted."""
        self.over = True

    @property
    def reply(self) -> Any:
        """The reply, or None if it has not come."""
        return self._reply

    @property
    def answered(self) -> bool:
        """Whether the reply has come."""
        return self._reply is not None

    def poll(self) -> Any:
        """See :class:`lualock._protocol.Pending`."""
        if self._error is not None:
            return self._error
        if isinstance(self._reply, Refused):
            return errors.reply_error(str(self._reply), self.call)
        return self._reply


class ThreadSentReply(SentReply):
    """In a thread: the reply is read when its connection is next used, or polled."""

    def __init__(
        self, connection: Connection, call: RunScript, posted: float, *, hold: bool
    ) -> None:
        super().__init__(connection.process, call, posted)
        self._connection = connection
        self._resend = False
        call.via = self
        self.process.stamp(call)
        connection.send(self, call, whole=call.lazy, hold=hold)

    def settle(self, sending: Sending, reply: Any, error: LockError | None) -> None:
        """Take a reply of the connection, or its end."""
        if _is_noscript(reply) and not self.call.moot:
            self._resend = True  # at the next poll
            return
        self._reply, self._error = reply, error
        self.over = error is not None

    def poll(self) -> Any:
        """See :class:`lualock._protocol.Pending`."""
        if self._reply is None and self._error is None:
            if self._resend and not self._connection.open:
                return errors.lost_reply_error(ConnectionResetError("reset"), "sim")
            self._connection.flush()
            if self._resend:
                self._resend = False
                self._connection.send(self, self.call, whole=True)
        return super().poll()


class LoopSentReply(SentReply):
    """In a loop: the reply is read when it comes. If none comes, a lazy call is sent again; the
    other kind is repeated by its waiter."""

    def __init__(self, connection: Connection, call: RunScript, posted: float) -> None:
        super().__init__(connection.process, call, posted)
        call.via = connection
        self._request = Request(connection.process, [call], None, self._settle, posted=True)
        self._request.post(connection)

    def _settle(self, replies: list[Any], error: LockError | None) -> None:
        (self._reply,) = replies
        self._error = error
        self.over = error is not None

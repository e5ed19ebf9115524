"""A connection for threads: one question, one reply, and replies that are read later."""

from __future__ import annotations

import selectors
import socket
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ReplyError

from lualock._protocol import Clock, RunScript, SendScript
from lualock._transport import codec, errors, sockets
from lualock._transport.sockets import TIMED_OUT, Timeout
from lualock.errors import LockUnavailable


class SentReply:
    """The reply to a posted call. It is read when its line is next used, or when asked for."""

    __slots__ = ("_collect", "_reply", "call", "line", "proof")

    def __init__(
        self, call: RunScript, proof: bytes, line: Connection, collect: Callable[[Connection], None]
    ) -> None:
        self.call = call
        self.proof = proof
        self.line: Connection | None = line
        self._collect = collect
        self._reply: Any = None

    def settle(self, reply: Any) -> None:
        """The reply has come (``None``: it never will)."""
        self._reply = reply
        self.line = None

    @property
    def answered(self) -> bool:
        """Whether the reply has been read."""
        return self.line is None and self._reply is not None

    def poll(self) -> Any:
        """The reply, or ``None`` while it has not come. Never waits.

        :raises LockUnavailable: it will never come, or it is an error.
        """
        if (line := self.line) is not None:
            self._collect(line)
        if self.line is None and self._reply is None:
            raise LockUnavailable("the reply was lost with its connection", outcome_unknown=True)
        if isinstance(self._reply, ReplyError):
            raise errors.reply_error(str(self._reply), self.call)
        return self._reply


class Connection:
    """A connection that redis-py opened, and that we talk on."""

    __slots__ = (
        *("__weakref__", "_ahead", "_connection", "_lazily", "_owed", "_replies", "_timeout"),
        *("_usual_s", "hurried", "seat", "socket"),
    )

    def __init__(self, connection: Any, usual_s: float) -> None:
        self._connection = connection
        # For a line that an interruption left to nobody. Not a destructor: an error and its frames
        # may keep it in a cycle, and the collector could come to the socket first.
        weakref.finalize(self, connection.disconnect).atexit = False
        self.socket: socket.socket = connection._sock
        self._replies = codec.Replies()
        self._owed: deque[SentReply] = deque()
        self._ahead = 0  # how many of these come before the reply that is waited for
        self._usual_s = usual_s
        self._timeout = Timeout(self.socket, usual_s)
        self.seat: object = None
        self.hurried = False  # its timeout is not the usual one
        # The flag that lets the kernel keep back what it is given until more comes, or 0.2 s pass.
        by_tcp = self.socket.family in (socket.AF_INET, socket.AF_INET6)
        plain = type(self.socket) is socket.socket
        self._lazily: int = getattr(socket, "MSG_MORE", 0) if by_tcp and plain else 0

    def limit(self, left_s: float | None) -> None:
        """How long a send or a receive may take from now on; ``None``: as usual."""
        wanted_s = self._usual_s if left_s is None else max(left_s, sockets.LEAST_S)
        self._timeout.set(wanted_s)
        self.hurried = wanted_s != self._usual_s

    @property
    def silent_s(self) -> float:
        """How long a receive may take now."""
        return self._timeout.seconds

    def send(self, question: bytes) -> None:
        """Send a question, or several in one piece. If this raises, a part of it may have been
        sent: the line must be closed."""
        self._ahead = len(self._owed)
        try:
            self.socket.sendall(question)
        except TIMED_OUT:
            raise self._not_sent() from None

    def _not_sent(self) -> ConnectionError:
        return ConnectionError(f"not sent within {self._timeout.seconds:.3g} s")

    def ask(self, question: bytes, proof: bytes) -> Any:
        """Send a question, as :meth:`send` does, and wait for its reply, as :meth:`read` does."""
        self.send(question)
        return self.read(proof)

    def read(self, proof: bytes, *, now: bool = False) -> Any:
        """Wait for the next reply to what was sent.

        :param proof: what the reply must begin with; empty: it has no proof.
        :param now: do not wait; :data:`codec.MORE` if the reply has not come yet.
        :raises errors.Unanswered: it did not come in time. It can be read later.
        """
        replies, connected = self._replies, self.socket
        while True:
            while (reply := replies.gets()) is not codec.MORE:
                if type(reply) is codec.PushNotification:
                    continue  # RESP3: nothing that we asked for
                if self._ahead:
                    self._settle(reply)
                    self._ahead -= 1
                elif type(reply) is bytes and (said := reply.removeprefix(proof)) is not reply:
                    return said  # the usual case, without a call
                else:
                    return codec.proved(reply, proof) if proof else reply
            try:
                received = sockets.receive_now(connected) if now else connected.recv(sockets.CHUNK)
            except TIMED_OUT:
                if now:
                    return codec.MORE
                raise self._unanswered() from None
            if not received:
                raise ConnectionResetError("the server closed the connection")
            replies.feed(received)

    def _unanswered(self) -> errors.Unanswered:
        return errors.Unanswered(f"no reply within {self._timeout.seconds:.3g} s")

    def post(self, call: SendScript, collect: Callable[[Connection], None]) -> SentReply:
        """Send a call whose reply is read later, at the latest before the next question's."""
        question, proof = codec.pack(call, source=call.lazy)
        owed = SentReply(call, proof, self, collect)
        try:
            self.socket.sendall(question, self._lazily if call.lazy else 0)
        except TIMED_OUT:
            raise self._not_sent() from None
        self._owed.append(owed)
        return owed

    def collect(self) -> None:
        """Read the owed replies that have come."""
        if self._owed and self._lazily:
            # What the kernel still keeps back leaves now, for somebody wants to know.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while self._owed:
            reply = self._replies.next()
            if reply is codec.MORE:
                try:
                    received = sockets.receive_now(self.socket)
                except BlockingIOError:
                    return
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                self._replies.feed(received)
            else:
                self._settle(reply)

    def _settle(self, reply: Any) -> None:
        owed = self._owed[0]  # if this is interrupted, or refuses the reply, it is still owed
        if type(reply) is ReplyError and errors.is_noscript(reply) and not owed.call.moot:
            # The server has forgotten the script since: send it whole, and owe that reply.
            question, owed.proof = codec.pack(owed.call, source=True)
            self.socket.sendall(question)
            self._owed.append(owed)
        else:
            owed.settle(codec.proved(reply, owed.proof))
        self._owed.popleft()

    def close(self) -> None:
        """Close it. Replies that were still owed will never come."""
        self._connection.disconnect()
        self.seat = None
        while self._owed:
            self._owed.popleft().settle(None)


def first_to_answer(
    asked: list[tuple[Connection, list[Any]]], proofs: list[bytes], end: float, clock: Clock
) -> tuple[Connection, list[Any]] | None:
    """Wait for lines that were all sent the same; the first that has all its replies, and these.
    ``None``: none has by ``end``.

    :param asked: each line with the replies that it has had already. One that breaks is closed.
    """
    with selectors.DefaultSelector() as selector:
        for line, _ in asked:
            selector.register(line.socket, selectors.EVENT_READ)
        while True:
            for line, replies in list(asked):
                try:
                    while len(replies) < len(proofs):
                        reply = line.read(proofs[len(replies)], now=True)
                        if reply is codec.MORE:
                            break
                        replies.append(reply)
                    else:
                        return line, replies
                except errors.LINE_ERRORS as error:
                    if not errors.is_broken(error) or len(asked) == 1:
                        raise
                    asked.remove((line, replies))
                    selector.unregister(line.socket)
                    line.close()
            left_s = end - clock()
            if left_s <= 0:
                return None
            selector.select(left_s)

"""A connection for threads: one question, one reply, and replies that are read later."""

from __future__ import annotations

import socket
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ReplyError

from lualock.drive import wire
from lualock.drive.timeout import Timeout
from lualock.errors import LockUnavailable
from lualock.protocol import Call, Post


class Owed:
    """The reply to a posted call. It is read when its line is next used, or when asked for."""

    __slots__ = ("_collect", "_reply", "call", "line")

    def __init__(self, call: Call, line: Line, collect: Callable[[Line], None]) -> None:
        self.call = call
        self.line: Line | None = line
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
            raise wire.reply_error(str(self._reply), self.call.parts[0])
        return self._reply


class Line:
    """A connection that redis-py opened, and that we talk on."""

    __slots__ = (
        *("__weakref__", "_connection", "_lazily", "_owed", "_replies", "_socket", "_timeout"),
        *("_usual_s", "hurried", "seat"),
    )

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        # For a line that an interruption left to nobody. Not a destructor: an error and its frames
        # may keep it in a cycle, and the collector could come to the socket first.
        weakref.finalize(self, connection.disconnect).atexit = False
        self._socket: socket.socket = connection._sock
        self._replies = wire.Replies()
        self._owed: deque[Owed] = deque()
        self._usual_s: float = connection.socket_timeout
        self._timeout = Timeout(self._socket, self._usual_s)
        self.seat: object = None
        self.hurried = False  # its timeout is shorter than usual
        # The flag that lets the kernel keep back what it is given until more comes, or 0.2 s pass.
        by_tcp = self._socket.family in (socket.AF_INET, socket.AF_INET6)
        plain = type(self._socket) is socket.socket
        self._lazily: int = getattr(socket, "MSG_MORE", 0) if by_tcp and plain else 0

    def limit(self, left_s: float | None) -> None:
        """How long a send or a receive may take from now on; ``None``: as usual."""
        usual_s = self._usual_s
        wanted_s = usual_s if left_s is None else min(max(left_s, wire.LEAST_S), usual_s)
        self._timeout.set(wanted_s)
        self.hurried = wanted_s != usual_s

    def ask_all(self, questions: list[bytes]) -> list[Any]:
        """Send questions in one piece and wait for all their replies."""
        found: list[Any] = []
        found.append(self.ask(b"".join(questions), found, len(questions) - 1))
        return found

    def ask(self, question: bytes, earlier: list[Any] | None = None, count: int = 0) -> Any:
        """Send a question and wait for its reply: of several questions in one piece the last one's,
        and the ``count`` before it go to ``earlier``."""
        replies, connected = self._replies, self._socket
        try:
            connected.sendall(question)
            owed = len(self._owed)
            while True:
                received = connected.recv(wire.CHUNK)
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                replies.feed(received)
                while (reply := replies.gets()) is not wire.MORE:
                    if type(reply) is wire.PushNotification:
                        continue  # RESP3: nothing that we asked for
                    if owed:
                        self._settle(reply)
                        owed -= 1
                    elif earlier is not None and count:
                        earlier.append(reply)
                        count -= 1
                    else:
                        return reply
        except BlockingIOError:
            raise TimeoutError(f"no reply within {self._timeout.seconds:.3g} s") from None

    def post(self, call: Post, collect: Callable[[Line], None]) -> Owed:
        """Send a call whose reply is read later, at the latest before the next question's."""
        owed = Owed(call, self, collect)
        question = wire.pack(call, source=call.lazy)
        try:
            self._socket.sendall(question, self._lazily if call.lazy else 0)
        except BlockingIOError:
            raise TimeoutError(f"not sent within {self._timeout.seconds:.3g} s") from None
        self._owed.append(owed)
        return owed

    def collect(self) -> None:
        """Read the owed replies that have come."""
        if self._owed and self._lazily:
            # What the kernel still keeps back leaves now, for somebody wants to know.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while self._owed:
            reply = self._replies.next()
            if reply is wire.MORE:
                try:
                    received = wire.receive_now(self._socket)
                except BlockingIOError:
                    return
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                self._replies.feed(received)
            else:
                self._settle(reply)

    def _settle(self, reply: Any) -> None:
        owed = self._owed.popleft()
        if type(reply) is ReplyError and wire.is_noscript(reply) and not owed.call.moot:
            # The server has forgotten the script since: send it whole, and owe that reply.
            self._socket.sendall(wire.pack(owed.call, source=True))
            self._owed.append(owed)
        else:
            owed.settle(reply)

    def close(self) -> None:
        """Close it. Replies that were still owed will never come."""
        self._connection.disconnect()
        self.seat = None
        while self._owed:
            self._owed.popleft().settle(None)

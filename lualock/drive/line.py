"""A connection for threads: one question, one reply, and replies that are read later."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ReplyError

from lualock.drive import wire
from lualock.errors import LockUnavailable
from lualock.protocol import LAST_WORD_S, Call


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
    """A connection that redis-py opened, and that we talk on.

    A timeout is an option of the socket where that can be: with a timeout of Python's, each send
    and each receive is preceded by a poll(), four system calls more for acquire and release, a
    tenth of what they cost. It then shows as EAGAIN.
    """

    __slots__ = (
        *("_by_kernel", "_connection", "_owed", "_replies", "_socket", "seat"),
        *("_timeout_s", "_usual_s", "hurried"),
    )

    def __init__(self, connection: Any, usual_s: float) -> None:
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._replies = wire.Replies()
        self._owed: deque[Owed] = deque()
        self._usual_s = usual_s
        self._timeout_s = -1.0
        self.seat: object = None
        self.hurried = False  # its timeout is shorter than usual
        self._by_kernel = type(self._socket) is socket.socket  # not TLS: it has its own reads
        if self._by_kernel:
            self._socket.settimeout(None)
        self.limit(None)

    def limit(self, left_s: float | None) -> None:
        """How long a send or a receive may take from now on; ``None``: as usual."""
        wanted_s = self._usual_s if left_s is None else min(max(left_s, LAST_WORD_S), self._usual_s)
        if wanted_s == self._timeout_s:
            return
        self._timeout_s = wanted_s
        self.hurried = wanted_s != self._usual_s
        if self._by_kernel:
            seconds, part = divmod(wanted_s, 1)
            # Zero would mean for ever.
            value = struct.pack("ll", int(seconds), max(1, int(part * 1e6)))
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            except OSError:
                self._by_kernel = False  # a platform with another struct timeval
            else:
                return
        self._socket.settimeout(wanted_s)

    def ask(self, question: bytes) -> Any:
        """Send a question and wait for its reply."""
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
                    if not owed:
                        return reply
                    self._settle(reply)
                    owed -= 1
        except BlockingIOError:
            raise TimeoutError(f"no reply within {self._timeout_s:.3g} s") from None

    def post(self, call: Call, collect: Callable[[Line], None]) -> Owed:
        """Send a call whose reply is read later, at the latest before the next question's."""
        owed = Owed(call, self, collect)
        try:
            self._socket.sendall(wire.pack(call))
        except BlockingIOError:
            raise TimeoutError(f"not sent within {self._timeout_s:.3g} s") from None
        self._owed.append(owed)
        return owed

    def collect(self) -> None:
        """Read the owed replies that have come."""
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
        if type(reply) is ReplyError and wire.is_noscript(reply):
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

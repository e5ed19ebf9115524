"""The driver for threads: one connection a call, kept for the next."""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ProtocolError, ReplyError
from redis.exceptions import RedisError

from lualock import clock, fork
from lualock.drive import wire
from lualock.drive.endpoint import Endpoint
from lualock.protocol import Call, Steps, T

_sleep: Callable[[float], Any] = time.sleep

LINE_ERRORS = (RedisError, OSError, ProtocolError)


def _let_the_kernel_time_out(connected: socket.socket, timeout_s: float) -> None:
    """Set the timeout as an option of the socket, where that can be done.

    With a timeout of Python's, each send and each receive is preceded by a poll(): four system
    calls more for acquire and release, a tenth of what they cost. A timeout then shows as EAGAIN.
    """
    if type(connected) is not socket.socket:
        return  # TLS, which reads and writes in its own time
    seconds, part = divmod(timeout_s, 1)
    timeval = struct.pack("ll", int(seconds), max(1, int(part * 1e6)))
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    except OSError:
        return  # a platform with another struct timeval: Python's timeout stays
    connected.settimeout(None)


class _Line:
    """A connection that redis-py opened, and that we talk on: one question, one reply."""

    __slots__ = ("_connection", "_replies", "_socket", "_timeout_s")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._timeout_s: float = connection.socket_timeout
        self._replies = wire.Replies()
        _let_the_kernel_time_out(self._socket, self._timeout_s)

    def ask(self, question: bytes) -> Any:
        replies = self._replies
        try:
            self._socket.sendall(question)
            while True:
                received = self._socket.recv(4096)
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                replies.feed(received)
                reply = replies.next()
                if reply is not wire.MORE:
                    return reply
        except BlockingIOError:
            raise TimeoutError(f"no reply within {self._timeout_s:g} s") from None

    def close(self) -> None:
        self._connection.disconnect()


class BlockingDriver:
    """Runs protocols in the calling thread. Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.clock = clock.now
        self._idle: deque[_Line] = deque()  # append and pop are atomic, so it needs no lock
        self._server_checked = False
        fork.tell(self)

    def run(self, steps: Steps[T]) -> T:
        """Carry the protocol out to its end, and return or raise what it does."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._call(step) if isinstance(step, Call) else _sleep(step.seconds)
                except GeneratorExit:
                    raise
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result

    def close(self) -> None:
        """Close the idle connections. The driver opens new ones when it is used again."""
        while self._idle:
            self._idle.pop().close()

    def _call(self, call: Call) -> Any:
        try:
            line = self._idle.pop()
        except IndexError:
            line = self._open()
        try:
            reply = line.ask(wire.pack(call))
            if type(reply) is ReplyError and wire.is_noscript(reply):
                reply = line.ask(wire.pack(call, source=True))
        except BaseException as error:
            line.close()
            if not isinstance(error, LINE_ERRORS):
                raise
            # The others probably went the same way, and the next try must not meet a dead one.
            self.close()
            raise wire.lost_reply(error, str(self.endpoint)) from error
        self._idle.append(line)
        if type(reply) is ReplyError:
            raise wire.reply_error(str(reply), call.key)
        return reply

    def _open(self) -> _Line:
        connection = self.endpoint.blocking_connection()
        try:
            connection.connect()
            line = _Line(connection)
            if not self._server_checked:
                wire.check_hello(line.ask(wire.HELLO))
                self._server_checked = True
        except BaseException as error:
            connection.disconnect()
            if not isinstance(error, LINE_ERRORS):
                raise
            raise wire.connect_error(error, str(self.endpoint)) from error
        return line

    def after_fork(self) -> None:
        # The sockets are the parent's: the child closes its copies and never uses them.
        self._idle = deque()

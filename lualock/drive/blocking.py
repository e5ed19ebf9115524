"""The driver for threads: one connection a call, kept for the next."""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ProtocolError, ReplyError
from redis.exceptions import RedisError

from lualock import clock
from lualock.drive import wire
from lualock.drive.endpoint import Endpoint
from lualock.protocol import Call, Steps, T

_sleep: Callable[[float], Any] = time.sleep

LINE_ERRORS = (RedisError, OSError, ProtocolError)


class _Line:
    """A connection that redis-py opened, and that we talk on: one question, one reply."""

    __slots__ = ("_connection", "_replies", "_socket")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._replies = wire.Replies()

    def ask(self, question: bytes) -> Any:
        self._socket.sendall(question)
        replies = self._replies
        while True:
            received = self._socket.recv(4096)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            replies.feed(received)
            reply = replies.next()
            if reply is not wire.MORE:
                return reply

    def close(self) -> None:
        self._connection.disconnect()


class BlockingDriver:
    """Runs protocols in the calling thread. Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.clock = clock.now
        self._idle: deque[_Line] = deque()  # append and pop are atomic, so it needs no lock
        self._server_checked = False
        _drivers.add(self)

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

    def _after_fork(self) -> None:
        # The sockets are the parent's: the child closes its copies and never uses them.
        self._idle = deque()


_drivers: weakref.WeakSet[BlockingDriver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for driver in list(_drivers):
        driver._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

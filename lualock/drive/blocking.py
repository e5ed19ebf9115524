"""The driver for threads: one connection a call, kept for the next."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from typing import Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from lualock import clock
from lualock.drive import wire
from lualock.drive.endpoint import Endpoint
from lualock.protocol import Call, Step, Steps, T


class BlockingDriver:
    """Runs protocols in the calling thread. Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.clock = clock.now
        self._idle: deque[Any] = deque()  # append and pop are atomic, so it needs no lock
        self._server_checked = False
        _drivers.add(self)

    def run(self, steps: Steps[T]) -> T:
        """Carry the protocol out to its end, and return or raise what it does."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._perform(step)
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
            self._idle.pop().disconnect()

    def _perform(self, step: Step) -> Any:
        if type(step) is Call:
            return self._call(step)
        time.sleep(step.seconds)  # type: ignore[union-attr]  # the only other step is Wait
        return None

    def _call(self, call: Call) -> Any:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._open()
        try:
            try:
                connection.send_packed_command([wire.pack(call)], check_health=False)
                reply = connection.read_response(disable_decoding=True)
            except NoScriptError:
                connection.send_packed_command([wire.pack(call, source=True)], check_health=False)
                reply = connection.read_response(disable_decoding=True)
        except ResponseError as error:
            self._idle.append(connection)  # it answered, so it is in step
            raise wire.reply_error(error) from error
        except BaseException as error:
            connection.disconnect()
            if not isinstance(error, RedisError | OSError):
                raise
            # The others probably went the same way, and the next try must not meet a dead one.
            self.close()
            raise wire.lost_reply(error, str(self.endpoint)) from error
        self._idle.append(connection)
        return reply

    def _open(self) -> Any:
        connection = self.endpoint.blocking_connection()
        try:
            connection.connect()
            if not self._server_checked:
                connection.send_command("HELLO", check_health=False)
                wire.check_hello(connection.read_response(disable_decoding=True))
                self._server_checked = True
        except BaseException as error:
            connection.disconnect()
            if not isinstance(error, RedisError | OSError):
                raise
            raise wire.connect_error(error, str(self.endpoint)) from error
        return connection

    def _after_fork(self) -> None:
        # The sockets are the parent's: the child closes its copies and never uses them.
        self._idle = deque()


_drivers: weakref.WeakSet[BlockingDriver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for driver in list(_drivers):
        driver._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

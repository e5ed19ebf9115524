"""The connections of a driver: one for each call in flight, kept for the next call."""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque

from lualock._core import clock, fork
from lualock._protocol import MIN_REQUEST_S, ServerClock
from lualock._transport import codec, errors, sockets
from lualock._transport.connecting import connect_in_time
from lualock._transport.endpoint import Endpoint
from lualock._transport.threads.connection import Connection
from lualock._transport.threads.permit import Permit
from lualock.errors import LockUnavailable

MAX_CONNECTIONS = 12
"""Connections for calls, unless the caller allows fewer; messages have one more."""


class ConnectionPool:
    """Open connections, and keep those that no call uses. Safe to share between threads.

    It is the base class of the driver, which adds what is sent over them.
    """

    def __init__(self, endpoint: Endpoint, prefix: bytes) -> None:
        self.endpoint = endpoint
        self._prefix = prefix
        self.clock = clock.now
        self.server_clock = ServerClock(self.clock, endpoint.reply_s)
        self._server_checked = False
        self._most = min(MAX_CONNECTIONS, endpoint.max_connections - 1)
        self._silence_s = min(sockets.silence_s(endpoint.reply_s), endpoint.reply_s)
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """Drop the parent's sockets: a child never uses them."""
        self._idle: deque[Connection] = deque()  # append and pop are atomic, so it needs no lock
        self._permits: weakref.WeakSet[Permit] = weakref.WeakSet()
        # Its own lock is entered, never the condition: that runs Python code, and a signal handler
        # that raises there leaves the lock taken for good.
        self._lock = threading.RLock()
        self._returned = threading.Condition(self._lock)
        self._waiting = 0  # threads that wait for a connection

    def _take(self, until: float | None) -> Connection:
        # Do nothing else here: an interruption must find the connection with the caller, which
        # closes it.
        if not fork.same[0]:
            fork.start_anew()
        try:
            return self._idle.pop()
        except IndexError:
            pass  # and leave the clause, so that no later error has this one as its context
        return self._wait_or_open(until)

    def _wait_or_open(self, until: float | None) -> Connection:
        permit = Permit()
        with self._lock:
            self._waiting += 1  # first, so that a thread that returns a connection notifies us
            try:
                connection = self._take_idle()
                while connection is None:
                    if len(self._permits) < self._most:
                        self._permits.add(permit)
                        break
                    left_s = math.inf if until is None else until - self.clock()
                    if left_s <= 0:
                        raise LockUnavailable(
                            "could not send the request in time: all connections are busy"
                        )
                    self._returned.wait(min(1.0, left_s))
                    connection = self._take_idle()
            finally:
                self._waiting -= 1
        if connection is not None:
            return connection
        try:
            connection = self.connect(until)
            connection.permit = permit
            return connection
        except BaseException:
            if connection is not None:
                connection.close()
            self._permits.discard(permit)
            self._notify_returned()
            raise

    def _take_idle(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:  # other threads took the last one
            return None

    def _notify_returned(self) -> None:
        with self._lock:
            self._returned.notify()

    def connect(self, until: float | None) -> Connection:
        """Open a connection.

        :raises LockError: it cannot be opened, or not in time.
        """
        connection = self.endpoint.blocking_connection()
        now = self.clock()
        end = now + self.endpoint.reply_s if until is None else max(until, now + MIN_REQUEST_S)
        try:
            connect_in_time(connection, end, self.clock)
            opened = Connection(connection, self._silence_s)
            if not self._server_checked:
                opened.set_timeout(end - self.clock())
                codec.check_hello(opened.ask(codec.HELLO, b""))
                opened.set_timeout(end - self.clock())
                codec.check_published(opened.ask(codec.publish_nothing(self._prefix), b""))
                self._server_checked = True
            opened.set_timeout(end - self.clock())
            echo, proof = codec.echo()  # proves that the time is not an older reply
            sent_at = self.clock()
            server_us = codec.server_us(opened.ask(codec.TIME + echo, b""))
            received_at = self.clock()
            opened.read(proof)
            self.server_clock.compare(sent_at, received_at, server_us)
        except BaseException as error:
            connection.disconnect()
            if not errors.is_broken(error):
                raise
            raise errors.connect_error(error, str(self.endpoint)) from error
        return opened

    def close_idle(self) -> None:
        """Close the connections that no call uses."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:  # none is left, or other threads take or close them now
                return
            try:
                connection.collect()  # replies that have come are not lost with it
            except BaseException as error:
                if not errors.is_broken(error):
                    raise
            finally:
                connection.close()

"""Connections that are made in time, also while a name server does not answer."""

from __future__ import annotations

import ipaddress
import math
import threading
from typing import Any

from lualock.drive import wire
from lualock.protocol import Clock


def connect_in_time(connection: Any, end: float, clock: Clock) -> None:
    """Open a connection of redis-py's. Each reply of its handshake has what is left of the time,
    and so has the first that comes after it.

    :raises TimeoutError: that took longer than until ``end``.
    """
    if _needs_no_lookup(connection):
        _connect(connection, end, clock)
    else:
        _Apart(connection, end, clock).connect()


def _needs_no_lookup(connection: Any) -> bool:
    """Whether it is certain where the server is: nothing else can take longer than it may."""
    if hasattr(connection, "path"):
        return True
    try:
        ipaddress.ip_address(connection.host)
    except ValueError:
        return False
    return not hasattr(connection, "connection_pool")  # which finds it by asking Sentinel


class _Apart(threading.Thread):
    """A thread that connects. ``getaddrinfo`` can neither be interrupted nor given a time, so its
    caller leaves the thread behind when the time is over, and it closes what it made."""

    def __init__(self, connection: Any, end: float, clock: Clock) -> None:
        super().__init__(name="lualock-connect", daemon=True)
        self._connection, self._end, self._clock = connection, end, clock
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._left = False  # its caller has gone on

    def connect(self) -> None:
        """Connect, or raise what went wrong."""
        try:
            self.start()
        except BaseException as broke:
            self._left = True
            if not isinstance(broke, RuntimeError) or wire.raised_by_handler(broke):
                raise  # the thread may have begun to connect
            # The interpreter is ending, and starts no thread any more.
            _connect(self._connection, self._end, self._clock)
            return
        try:
            if not self._ended.wait(max(wire.LEAST_S, self._end - self._clock())):
                raise TimeoutError("it was not reached in time (its name, or the connection)")
        except BaseException:
            self._left = True
            raise
        error, self._error = self._error, None
        if error is not None:
            raise error

    def run(self) -> None:
        """What the thread does."""
        try:
            _connect(self._connection, self._end, self._clock)
        except BaseException as error:
            self._error = error
        self._ended.set()
        if self._left:  # a caller that leaves after this line closes the connection itself
            self._connection.disconnect()


def _connect(connection: Any, end: float, clock: Clock) -> None:
    read, usual_s = connection.read_response, connection.socket_timeout

    def left_s(most_s: float | None = usual_s) -> float:
        return min(math.inf if most_s is None else most_s, max(wire.LEAST_S, end - clock()))

    def read_in_time(*how: Any, **told: Any) -> Any:
        connection._sock.settimeout(left_s())
        return read(*how, **told)

    connection.socket_connect_timeout = left_s(connection.socket_connect_timeout)
    connection.socket_timeout = left_s()
    connection.read_response = read_in_time
    try:
        connection.connect()
        connection._sock.settimeout(left_s())
    except wire.NO_HANDSHAKE as error:
        raise wire.no_handshake(error) from error
    finally:
        del connection.read_response  # or it and the connection would keep each other alive
        connection.socket_timeout = usual_s

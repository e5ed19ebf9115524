"""Connections that are made in time, also while a name server does not answer."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import Any

from redis import exceptions as theirs

from lualock.drive import wire
from lualock.protocol import Clock


def connect_in_time(connection: Any, end: float, clock: Clock) -> None:
    """Open a connection of redis-py's. Each reply of its handshake has what is left of the time,
    and so has the first that comes after it.

    :raises wire.NotReached: that took longer than until ``end``.
    """
    if _needs_no_lookup(connection):
        _connect(connection, end, clock)
    else:
        _Apart(connection, end, clock).connect()


async def connect_by_address(connection: Any, reply_s: float) -> None:
    """Open a connection of redis-py's for asyncio. (Its caller limits the time.)

    asyncio looks names up in threads that ``asyncio.run`` waits for when it ends; this does so in
    one that is left behind.
    """
    if _needs_no_lookup(connection) or hasattr(connection, "connection_pool"):
        await connection.connect()
        return
    name, arguments = connection.host, connection._connection_arguments
    addresses = await _look_up(name, connection.port, reply_s)
    if hasattr(connection, "ssl_context"):
        connection._connection_arguments = lambda: {**arguments(), "server_hostname": name}
    try:
        for left, address in zip(reversed(range(len(addresses))), addresses, strict=True):
            connection.host = address
            try:
                await connection.connect()
                return
            except (OSError, asyncio.TimeoutError, theirs.ConnectionError, theirs.TimeoutError):
                if not left:
                    raise
    finally:
        connection.host = name
        vars(connection).pop("_connection_arguments", None)


async def _look_up(name: str, port: int, reply_s: float) -> list[str]:
    """The addresses of a name, in the order in which they are to be tried."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def tell(what: partial[None]) -> None:
        if not found.done():
            what()

    def work() -> None:
        try:
            infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            what = partial(found.set_result, [str(address[0]) for *_, address in infos])
        except Exception as error:
            what = partial(found.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, what)

    threading.Thread(target=work, name="lualock-connect", daemon=True).start()
    done, _ = await asyncio.wait({found}, timeout=reply_s)
    if not done:
        found.cancel()
        raise TimeoutError("its name was not found in time")
    return found.result()


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
                raise wire.NotReached("it was not reached in time (its name, or the connection)")
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

"""Connect in time, also while a name server does not answer."""

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

from lualock._core.event import Event
from lualock._protocol import Clock
from lualock._transport import errors, sockets


def connect_in_time(connection: Any, end: float, clock: Clock) -> None:
    """Open a connection of redis-py's. What is left of the time limits each reply of its handshake,
    and the first reply after it.

    :raises errors.NotReached: it was not open by ``end``.
    """
    if _has_fixed_address(connection):
        _connect(connection, end, clock)
    else:
        _ConnectThread(connection, end, clock).connect()


async def resolve_and_connect(connection: Any, reply_s: float) -> None:
    """Open a connection of redis-py's for asyncio. (The caller limits the time.)

    asyncio resolves names in threads that ``asyncio.run`` waits for when it ends; this function
    uses a thread that is left behind.
    """
    if _has_fixed_address(connection) or hasattr(connection, "connection_pool"):
        await connection.connect()
        return
    name, arguments = connection.host, connection._connection_arguments
    addresses = await _resolve(name, connection.port, reply_s)
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


async def _resolve(name: str, port: int, reply_s: float) -> list[str]:
    """Return the addresses of a name, in the order to try them."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def finish(set_outcome: partial[None]) -> None:
        if not found.done():
            set_outcome()

    def resolve() -> None:
        try:
            infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            set_outcome = partial(found.set_result, [str(address[0]) for *_, address in infos])
        except Exception as error:
            set_outcome = partial(found.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, set_outcome)

    threading.Thread(target=resolve, name="lualock-connect", daemon=True).start()
    done, _ = await asyncio.wait({found}, timeout=reply_s)
    if not done:
        found.cancel()
        raise TimeoutError("its name was not resolved in time")
    return found.result()


def _has_fixed_address(connection: Any) -> bool:
    """Return whether the server's address is known. Only resolving it can take too long."""
    if hasattr(connection, "path"):
        return True
    try:
        ipaddress.ip_address(connection.host)
    except ValueError:
        return False
    return not hasattr(connection, "connection_pool")  # that one asks Sentinel for the address


class _ConnectThread(threading.Thread):
    """A thread that connects. ``getaddrinfo`` can neither be interrupted nor take a timeout: when
    the time is over, the caller leaves the thread behind, and the thread closes what it opened."""

    def __init__(self, connection: Any, end: float, clock: Clock) -> None:
        super().__init__(name="lualock-connect", daemon=True)
        self._connection, self._end, self._clock = connection, end, clock
        self._ended = Event()
        self._failure: BaseException | None = None
        self._abandoned = False  # its caller does not wait any more

    def connect(self) -> None:
        """Connect, or raise the thread's error."""
        try:
            self.start()
        except BaseException as error:
            self._abandoned = True
            if not isinstance(error, RuntimeError) or errors.raised_by_handler(error):
                raise  # the thread may have begun to connect
            # The interpreter is ending, and cannot start threads any more.
            _connect(self._connection, self._end, self._clock)
            return
        try:
            if not self._ended.wait(max(sockets.MIN_TIMEOUT_S, self._end - self._clock())):
                raise errors.NotReached(
                    "it was not reached in time (resolving its name, or connecting)"
                )
        except BaseException:
            self._abandoned = True
            raise
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def run(self) -> None:
        try:
            _connect(self._connection, self._end, self._clock)
        except BaseException as error:
            self._failure = error
        self._ended.set()
        if self._abandoned:  # a caller that leaves later closes the connection itself
            self._connection.disconnect()


def _connect(connection: Any, end: float, clock: Clock) -> None:
    read, usual_s = connection.read_response, connection.socket_timeout

    def left_s(limit_s: float | None = usual_s) -> float:
        return min(
            math.inf if limit_s is None else limit_s, max(sockets.MIN_TIMEOUT_S, end - clock())
        )

    def read_in_time(*args: Any, **kwargs: Any) -> Any:
        connection._sock.settimeout(left_s())
        return read(*args, **kwargs)

    connection.socket_connect_timeout = left_s(connection.socket_connect_timeout)
    connection.socket_timeout = left_s()
    connection.read_response = read_in_time
    try:
        connection.connect()
        connection._sock.settimeout(left_s())
    except errors.HANDSHAKE_ERRORS as error:
        raise errors.handshake_error(error) from error
    finally:
        del connection.read_response  # or it and the connection would keep each other alive
        connection.socket_timeout = usual_s

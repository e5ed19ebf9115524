"""Messages for threads that wait: one connection for all of them, read by one of them.

Whoever waits first reads; a message for another is put into its place and wakes it, and whoever
has its own message, or no more time, leaves the reading to another. So a process with one waiter
is woken by the server directly, without a thread in between, and one with hundreds has one
connection. Rules that hold here:

* At most one reads (``_reader``), and while anybody waits somebody reads.
* When the connection breaks, messages may have been lost: everybody is told to look again.
"""

from __future__ import annotations

import math
import select
import ssl
import threading
from typing import Any

from lualock import fork
from lualock.drive import wire
from lualock.drive.endpoint import Endpoint
from lualock.errors import LockUnavailable
from lualock.protocol import Clock

QUIET_S = 15.0
"""After so long without a message, a PING must show that the connection is still there."""


class _Place:
    """Where one waiter finds its messages."""

    __slots__ = ("bell", "messages", "since", "token")

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.messages: list[bytes] = []
        self.bell: threading.Event | None = None  # there while it rests and another reads
        self.since = 0  # which of the successive connections it has been told of


class Ear:
    """Listens for the messages of one process."""

    def __init__(self, endpoint: Endpoint, prefix: bytes, clock: Clock) -> None:
        self._endpoint = endpoint
        self._prefix = prefix
        self._clock = clock
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """A child listens for itself, on a channel of its own."""
        self.channel = wire.new_channel(self._prefix)
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._places: dict[bytes, _Place] = {}
        self._resting: dict[bytes, _Place] = {}  # those who wait while another reads
        self._reader: _Place | None = None
        self._count = 0
        self._connection: Any = None
        self._socket: Any = None
        self._tls = False
        self._replies = wire.Replies(pushes=True)
        self._poll = select.poll()
        self._heard = self._pinged = 0.0

    def listen(self, token: bytes, until: float | None) -> bytes:
        """Hear messages for ``token`` from now on; returns the channel they come by."""
        with self._lock:
            place = self._places.get(token)
            if place is None:
                place = self._places[token] = _Place(token)
            now = self._clock()
            if self._connection is not None and (now - self._heard < QUIET_S or self._alive(now)):
                place.since = self._count
                return self.channel
        left_s = -1.0 if until is None else max(0.0, until - self._clock())
        if not self._connecting.acquire(timeout=left_s):
            raise LockUnavailable("no connection for messages was made in time")
        try:
            if self._connection is None:
                self._connect(until)
            place.since = self._count
        finally:
            self._connecting.release()
        return self.channel

    def forget(self, token: bytes) -> None:
        """Hear no more messages for ``token``."""
        self._places.pop(token, None)

    def wait(self, token: bytes, seconds: float) -> bytes | None:
        """The next message for ``token``; ``None`` if there is none within ``seconds``."""
        give_up = self._clock() + seconds
        place = self._places[token]
        left = False
        try:
            while True:
                with self._lock:
                    if place.messages or place.since != self._count:
                        self._leave(place)
                        left = True
                        if place.messages:
                            return place.messages.pop(0)
                        place.since = self._count
                        return b""
                    reader = self._reader
                    if reader is None or reader is place or reader.token not in self._places:
                        self._reader = reader = place
                    else:
                        place.bell = bell = threading.Event()
                        self._resting[token] = place
                left_s = give_up - self._clock()
                if left_s <= 0:
                    return None
                if reader is place:
                    connected = self._socket
                    if connected is None:
                        continue
                    if not (self._tls and connected.pending()):  # poll() does not know of that
                        self._poll.poll(math.ceil(left_s * 1000) if left_s < 1e6 else None)
                    with self._lock:
                        if self._socket is connected:
                            self._take_in(connected)
                            if place.messages:
                                self._leave(place)
                                left = True
                                return place.messages.pop(0)
                else:
                    bell.wait(min(left_s, threading.TIMEOUT_MAX))
                    place.bell = None
        finally:
            if not left:
                with self._lock:
                    self._leave(place)

    def _leave(self, place: _Place) -> None:
        """Let another read, if this one did."""
        self._resting.pop(place.token, None)
        place.bell = None
        if self._reader is place:
            self._reader = None
        if self._reader is None and self._resting:
            _, heir = self._resting.popitem()
            if heir.bell is not None:
                heir.bell.set()

    def close(self) -> None:
        """Close the connection. It is opened again when somebody listens."""
        with self._lock:
            self._break()

    def _take_in(self, connected: Any) -> None:
        """Deliver what has come, without waiting."""
        whole = False  # an exception out of the blue must not leave half a message behind
        try:
            places, gets, size = self._places, self._replies.gets, wire.CHUNK
            while size == wire.CHUNK:
                received = connected.recv(wire.CHUNK)
                size = len(received)
                self._replies.feed(received)
                while (reply := gets()) is not wire.MORE:
                    if isinstance(reply, list) and reply[0] == b"message":
                        payload = reply[2]
                        place = places.get(payload[:22])
                        if place is not None:
                            place.messages.append(payload[22:])
                            if place.bell is not None:
                                place.bell.set()
            if size:
                self._heard, self._pinged = self._clock(), 0.0
                whole = True
        except (BlockingIOError, ssl.SSLWantReadError):
            whole = True
        except wire.LINE_ERRORS:
            pass
        finally:
            if not whole:
                self._break()

    def _alive(self, now: float) -> bool:
        """Whether the connection may still be one. Who waits on it reads at once, and so learns
        that it was closed; that nothing comes by it any more only a missing PONG tells."""
        if self._pinged:
            if now - self._pinged > self._connection.socket_timeout:
                self._break()
                return False
            return True
        self._pinged = now
        try:
            self._socket.sendall(wire.PING)
        except OSError:
            self._break()
            return False
        return True

    def _connect(self, until: float | None) -> None:
        connection = self._endpoint.blocking_connection()
        wire.limit(connection, until, self._clock)
        self._replies = replies = wire.Replies(pushes=True)
        try:
            connection.connect()
            connection._sock.sendall(wire.subscribe(self.channel))
            while (reply := replies.next()) is wire.MORE:
                received = connection._sock.recv(4096)
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                replies.feed(received)
            wire.check_subscribed(reply)
            connection._sock.setblocking(False)
        except BaseException as error:
            connection.disconnect()
            if not isinstance(error, wire.LINE_ERRORS):
                raise
            raise wire.connect_error(error, str(self._endpoint)) from error
        with self._lock:
            self._poll = select.poll()
            self._poll.register(connection._sock, select.POLLIN)
            self._connection = connection
            self._socket = connection._sock
            self._tls = isinstance(self._socket, ssl.SSLSocket)
            self._count += 1
            self._heard, self._pinged = self._clock(), 0.0

    def _break(self) -> None:
        connection, self._connection, self._socket = self._connection, None, None
        self._count += 1
        if connection is not None:
            connection.disconnect()
        for place in list(self._places.values()):
            if place.bell is not None:
                place.bell.set()

"""Messages for threads that wait: one connection for all of them, read by one of them.

Whoever waits first reads; a message for another is put into its place and wakes it, and whoever
has its own message, or no more time, leaves the reading to another. So a process with one waiter
is woken by the server directly, without a thread in between, and one with hundreds has one
connection. Rules that hold here:

* At most one reads (``_reader``), and while anybody waits somebody reads.
* When the connection breaks, messages may have been lost: everybody is told to look again.
* Whoever reads makes sure from time to time that the connection is alive, and so does a waiter
  whose own time is short.
"""

from __future__ import annotations

import math
import socket
import threading
import weakref
from contextlib import suppress
from typing import Any

from lualock import fork
from lualock.drive import wire
from lualock.drive.connecting import connect_in_time
from lualock.drive.endpoint import Endpoint
from lualock.drive.seat import Seat
from lualock.drive.timeout import LONGEST_S, SHORT_S, TIMED_OUT, Timeout
from lualock.errors import LockUnavailable
from lualock.protocol import Clock, Listen

QUIET_S = 15.0
"""After so long without a message, a PING must show that the connection is still there."""

DOUBTED_S = 5.0
"""After so long without a message, a waiter that comes alone listens by a new connection instead:
that takes no longer than to find out whether the old one is dead. One that waits asks by a PING,
after a quarter of its time if that is less: a turn that it does not hear of would pass."""


def quiet_s(seconds: float) -> float:
    """After how long a silence who waits for so long asks whether the connection is alive."""
    return min(DOUBTED_S, wire.silence_s(seconds))


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
        self._lock = threading.RLock()  # a signal handler may wait, too, in between
        self._opening = threading.Condition()
        self._opener: weakref.ref[Seat] | None = None  # who makes the connection
        self._opens_in = 0  # which thread that is
        self._places: dict[bytes, _Place] = {}
        self._resting: dict[bytes, _Place] = {}  # those who wait while another reads
        self._reader: _Place | None = None
        self._count = 0
        self._connection: Any = None
        self._socket: Any = None
        self._timeout: Any = None
        self._replies = wire.Replies(pushes=True)
        self._heard = self._pinged = 0.0  # when the connection was heard, and was asked, last

    def listen(self, step: Listen) -> bytes:
        """Hear messages for its token from now on; returns the channel they come by."""
        token, until, now = step.token, step.until, self._clock()
        if not fork.same[0]:
            fork.start_anew()
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = _Place(token)
            if now - self._heard > DOUBTED_S and len(self._places) == 1:
                self.close()
        elif step.anew and place.since == self._count:
            self.close()
        # In this order: what breaks from here on makes another count than the place has.
        place.since = self._count
        if self._connection is not None and (
            now - self._heard < QUIET_S or self._alive(now, wire.silence_s(self._endpoint.reply_s))
        ):
            return self.channel
        seat = Seat()
        # One that began to connect while the server was silent may never end.
        patience = now + wire.silence_s(self._endpoint.reply_s if until is None else until - now)
        with self._opening:
            while self._opener is not None and self._opener() is not None:
                if self._opens_in == threading.get_ident():
                    raise _itself()
                left_s = math.inf if until is None else until - self._clock()
                if left_s <= 0:
                    raise LockUnavailable("no connection for messages was made in time")
                if (patient_s := patience - self._clock()) <= 0:
                    break
                self._opening.wait(min(1.0, left_s, patient_s))
            self._opens_in, self._opener = threading.get_ident(), weakref.ref(seat)
            mine = self._opener
        try:
            if self._connection is None:
                self._connect(until)
            place.since = self._count
        finally:
            if self._opener is mine:
                self._opener = None
            with self._opening:
                self._opening.notify_all()
        return self.channel

    def forget(self, token: bytes) -> None:
        """Hear no more messages for ``token``."""
        self._places.pop(token, None)

    def wait(self, token: bytes, seconds: float) -> bytes | None:
        """The next message for ``token``; ``None`` if there is none within ``seconds``."""
        place = self._places[token]
        began = self._clock()
        give_up, left_s = began + seconds, seconds
        asks_after_s = quiet_s(seconds)
        try:
            while True:
                with self._lock:
                    if place.messages or place.since != self._count or self._socket is None:
                        place.since = self._count
                        self._leave(place)
                        return place.messages.pop(0) if place.messages else b""
                    if left_s <= 0:
                        self._leave(place)
                        return None
                    reader = self._reader
                    if reader is None or reader is place or reader.token not in self._places:
                        self._reader = reader = place
                    else:
                        place.bell = bell = threading.Event()
                        self._resting[token] = place
                wait_s = left_s
                if left_s > wire.SILENCE_LEAST_S:
                    wait_s = min(left_s, self._alive_for(began, asks_after_s, left_s))
                if reader is place:
                    message = self._read(place, wait_s)
                    if message is not None:
                        return message
                else:
                    wait_s = left_s if asks_after_s == DOUBTED_S else wait_s
                    bell.wait(min(wait_s, threading.TIMEOUT_MAX))
                left_s = give_up - self._clock()
        except BaseException:
            with self._lock:
                self._leave(place)
            raise

    def _leave(self, place: _Place) -> None:
        """Let another read, if this one did."""
        if self._reader is place:
            self._reader = None
        if place.bell is not None:
            place.bell = None
            self._resting.pop(place.token, None)
        if self._resting and self._reader is None:
            _, heir = self._resting.popitem()
            if heir.bell is not None:
                heir.bell.set()

    def close(self) -> None:
        """Close the connection. It is opened again when somebody listens."""
        with self._lock:
            self._break()

    def _read(self, place: _Place, seconds: float) -> bytes | None:
        """Wait for what comes, and deliver it. If ``place`` gets a message it leaves with it."""
        connection, connected = self._connection, self._socket
        if connected is None:
            return None
        whole = False  # an exception out of the blue must not lose a message, or half of one
        try:
            self._timeout.set(seconds)
            received = connected.recv(wire.CHUNK)
            with self._lock:
                if received and connected is self._socket:
                    self._heard = self._clock()
                    places, gets = self._places, self._replies.gets
                    self._replies.feed(received)
                    while (reply := gets()) is not wire.MORE:
                        if not isinstance(reply, list) or reply[0] != b"message":
                            continue
                        found = places.get(reply[2][:22])
                        if found is not None:
                            found.messages.append(reply[2][22:])
                            if found.bell is not None:
                                found.bell.set()
                    whole = True
                    if place.messages:
                        self._leave(place)
                        return place.messages.pop(0)
        except wire.LINE_ERRORS as error:
            if not wire.is_broken(error):
                raise
            whole = isinstance(error, TIMED_OUT)
            wire.dealt_with([error])  # eventlet's frames have it, and it them, and so the caller's
        finally:
            if not whole:
                with self._lock:
                    if connected is self._socket:
                        self._break()
            if connected is not self._socket:
                connection.disconnect()
        return None

    def _alive_for(self, since: float, asks_after_s: float, left_s: float) -> float:
        """For how long who waits since then need not ask whether the connection is alive. If it is
        time now, this asks; if it has asked and nothing came, the connection is closed."""
        now = self._clock()
        patience_s = wire.silence_s(min(self._endpoint.reply_s, left_s))
        if self._pinged > self._heard:
            due = max(self._pinged, since) + patience_s  # nobody may have read before
        else:
            due = max(self._heard, since) + asks_after_s
        if due > now:
            return due - now
        return patience_s if self._alive(now, patience_s) else 0.0

    def _alive(self, now: float, patience_s: float) -> bool:
        """Whether the connection may still be one. Who waits on it reads at once, and so learns
        that it was closed; that nothing comes by it any more only a missing PONG tells."""
        with self._lock:
            if self._connection is None:
                return False
            if self._pinged <= self._heard:
                self._pinged = now
                try:
                    self._socket.sendall(wire.PING)
                except BaseException as error:
                    self._break()  # a part of it may have been sent
                    if not wire.is_broken(error):
                        raise
                    return False
            elif now - self._pinged >= patience_s:
                self._break()
                return False
            return True

    def _connect(self, until: float | None) -> None:
        connection = self._endpoint.blocking_connection()
        replies = wire.Replies(pushes=True)
        try:
            reply_s = self._endpoint.reply_s
            end = self._clock() + reply_s if until is None else until
            connect_in_time(connection, end, self._clock)
            connection._sock.sendall(wire.subscribe(self.channel))
            while (reply := replies.next()) is wire.MORE:
                received = connection._sock.recv(4096)
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                replies.feed(received)
            wire.check_subscribed(reply, self.channel)
            with self._lock:
                if self._connection is not None:  # another was quicker
                    connection.disconnect()
                    return
                self._timeout = Timeout(connection._sock, LONGEST_S, SHORT_S)
                self._replies = replies
                self._connection = connection
                self._socket = connection._sock
                self._count += 1
                self._heard = self._clock()
        except BaseException as error:
            if self._connection is connection:
                self._connection = self._socket = None
            connection.disconnect()
            if not wire.is_broken(error):
                raise
            raise wire.connect_error(error, str(self._endpoint)) from error

    def _break(self) -> None:
        if self._connection is not None:  # first, so that an interruption leaves nothing open
            if self._reader is None:
                self._connection.disconnect()
            else:
                # That ends the reader's wait, and the reader disconnects. Under eventlet a wait on
                # a descriptor that another greenlet closes has no end.
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
        self._connection = self._socket = None
        self._count += 1
        for place in list(self._places.values()):
            if place.bell is not None:
                place.bell.set()


def _itself() -> LockUnavailable:
    """Why a thread that is opening the connection cannot wait for it: it would for ever."""
    error = LockUnavailable(
        "a signal handler cannot wait for this lock now: it interrupted its own thread while that "
        "connected to the server, in order to wait for a lock itself. Try again when the handler "
        "has returned, or use acquire(timeout=0)"
    )
    error._lasts = True
    return error

"""Messages for threads that wait: one connection for all of them, read by one of them.

The first waiter reads. It puts a message for another waiter into that one's inbox and wakes it. A
waiter that has its own message, or no time left, hands over the reading. So a process with one
waiter is woken by the server directly, without a thread in between, and a process with hundreds has
one connection. Invariants:

* At most one waiter reads (``_reader``), and while there are waiters one of them reads.
* When the connection breaks, messages may be lost: each waiter then checks the queue.
* The reader checks from time to time that the connection is alive; so does a waiter that has only
  a short time.
"""

from __future__ import annotations

import math
import socket
import threading
import weakref
from contextlib import suppress
from typing import Any

from lualock._core import fork
from lualock._core.event import Event
from lualock._protocol import Clock, Subscribe
from lualock._transport import codec, errors, sockets
from lualock._transport.connecting import connect_in_time
from lualock._transport.endpoint import Endpoint
from lualock._transport.sockets import MAX_TIMEOUT_S, SHORT_S, TIMED_OUT, Timeout
from lualock._transport.threads.permit import Permit
from lualock.errors import LockUnavailable

PING_AFTER_S = 15.0
"""After this long without data, a waiter that comes sends a PING first."""

DOUBTED_S = 5.0
"""After this long without data, a waiter without company listens by a new connection instead: that
takes no longer than finding out whether the old one is dead."""


def ping_after_s(seconds: float) -> float:
    """Return after how long a silence a waiter of so many seconds sends a PING, so that it does not
    miss its turn on a dead connection."""
    return min(DOUBTED_S, sockets.silence_s(seconds))


class _Inbox:
    """The messages of one waiter."""

    __slots__ = ("event", "generation", "messages", "token")

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.messages: list[bytes] = []
        self.event: Event | None = None  # exists while the waiter sleeps: it wakes it
        self.generation = 0  # of the connection that the waiter knows of


class Subscriber:
    """Receive the messages of one process."""

    def __init__(self, endpoint: Endpoint, prefix: bytes, clock: Clock) -> None:
        self._endpoint = endpoint
        self._prefix = prefix
        self._clock = clock
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """Drop the parent's connection: a child listens on a channel of its own."""
        self.channel = codec.new_channel(self._prefix)
        self._lock = threading.RLock()  # a signal handler may wait, too, in between
        self._opening = threading.RLock()
        self._opened = threading.Condition(self._opening)
        self._opener: weakref.ref[Permit] | None = None  # of the thread that opens the connection
        self._opener_thread = 0
        self._inboxes: dict[bytes, _Inbox] = {}
        self._sleeping: dict[bytes, _Inbox] = {}  # of waiters that wait while another one reads
        self._reader: _Inbox | None = None
        self._generation = 0  # of the connection: it changes when one is lost or opened
        self._connection: Any = None
        self._socket: Any = None
        self._timeout: Any = None
        self._replies = codec.Replies(pushes=True)
        self._received_at = self._pinged_at = 0.0  # the last data, the last PING

    def listen(self, step: Subscribe) -> bytes:
        """Receive messages for the step's token from now on. Returns their channel."""
        token, until, now = step.token, step.until, self._clock()
        if not fork.same[0]:
            fork.start_anew()
        inbox = self._inboxes.get(token)
        if inbox is None:
            inbox = self._inboxes[token] = _Inbox(token)
            if now - self._received_at > DOUBTED_S and len(self._inboxes) == 1:
                self.close()
        elif step.anew and inbox.generation == self._generation:
            self.close()
        # In this order: a connection that breaks from here on changes the generation, and the inbox
        # then has an older one.
        inbox.generation = self._generation
        if self._connection is not None and (
            now - self._received_at < PING_AFTER_S
            or self._check_alive(now, sockets.silence_s(self._endpoint.reply_s))
        ):
            return self.channel
        permit = Permit()
        # An attempt that began while the server was silent may never end.
        reply_s = self._endpoint.reply_s if until is None else until - now
        patient_until = now + sockets.silence_s(reply_s)
        with self._opening:
            while self._opener is not None and self._opener() is not None:
                if self._opener_thread == threading.get_ident():
                    raise _own_handler_error()
                left_s = math.inf if until is None else until - self._clock()
                if left_s <= 0:
                    raise LockUnavailable("could not open a connection for messages in time")
                if (patient_s := patient_until - self._clock()) <= 0:
                    break
                self._opened.wait(min(1.0, left_s, patient_s))
            self._opener_thread, self._opener = threading.get_ident(), weakref.ref(permit)
            mine = self._opener
        try:
            if self._connection is None:
                self._connect(until)
            inbox.generation = self._generation
        finally:
            if self._opener is mine:
                self._opener = None
            with self._opening:
                self._opened.notify_all()
        return self.channel

    def forget(self, token: bytes) -> None:
        """Receive no more messages for ``token``."""
        self._inboxes.pop(token, None)

    def wait(self, token: bytes, seconds: float) -> bytes | None:
        """Return the next message for ``token``, or ``None`` if none comes within ``seconds``.

        ``b""``: messages may have been lost, so the waiter checks the queue.
        """
        inbox = self._inboxes[token]
        began_at = self._clock()
        end, left_s = began_at + seconds, seconds
        try:
            while True:
                with self._lock:
                    if (
                        inbox.messages
                        or inbox.generation != self._generation
                        or self._socket is None
                    ):
                        inbox.generation = self._generation
                        self._hand_over_reading(inbox)
                        return inbox.messages.pop(0) if inbox.messages else b""
                    if left_s <= 0:
                        self._hand_over_reading(inbox)
                        return None
                    reader = self._reader
                    if reader is None or reader is inbox or reader.token not in self._inboxes:
                        self._reader = reader = inbox
                    else:
                        inbox.event = event = Event()
                        self._sleeping[token] = inbox
                wait_s = left_s
                if left_s > sockets.SILENCE_MIN_S:
                    wait_s = min(left_s, self._alive_for_s(began_at, seconds, left_s))
                if reader is inbox:
                    message = self._read(inbox, wait_s)
                    if message is not None:
                        return message
                else:
                    if ping_after_s(seconds) == DOUBTED_S:
                        wait_s = left_s  # the reader checks the connection often enough
                    event.wait(wait_s)
                left_s = end - self._clock()
        except BaseException:
            with self._lock:
                self._hand_over_reading(inbox)
            raise

    def _hand_over_reading(self, inbox: _Inbox) -> None:
        """Stop reading or sleeping; wake another waiter if none reads."""
        if self._reader is inbox:
            self._reader = None
        if inbox.event is not None:
            inbox.event = None
            self._sleeping.pop(inbox.token, None)
        if self._sleeping and self._reader is None:
            _, other = self._sleeping.popitem()
            if other.event is not None:
                other.event.set()

    def close(self) -> None:
        """Close the connection. Waiters check again, and open another one when they listen."""
        with self._lock:
            self._drop_connection()

    def _read(self, inbox: _Inbox, seconds: float) -> bytes | None:
        """Wait for data, and deliver the messages in it. Returns the inbox's own message."""
        connection, connected = self._connection, self._socket
        if connected is None:
            return None
        complete = False  # a signal handler's exception must not lose a message, or half of one
        try:
            self._timeout.set(seconds)
            received = connected.recv(sockets.RECEIVE_BYTES)
            with self._lock:
                if received and connected is self._socket:
                    self._received_at = self._clock()
                    inboxes, gets = self._inboxes, self._replies.gets
                    self._replies.feed(received)
                    while (reply := gets()) is not codec.INCOMPLETE:
                        if not isinstance(reply, list) or reply[0] != b"message":
                            continue
                        found = inboxes.get(reply[2][:22])
                        if found is not None:
                            found.messages.append(reply[2][22:])
                            if found.event is not None:
                                found.event.set()
                    complete = True
                    if inbox.messages:
                        self._hand_over_reading(inbox)
                        return inbox.messages.pop(0)
        except errors.CONNECTION_ERRORS as error:
            if not errors.is_broken(error):
                raise
            complete = isinstance(error, TIMED_OUT)
            # Frames of eventlet and the error keep each other alive, and so the caller's frames.
            errors.drop_tracebacks([error])
        finally:
            if not complete:
                with self._lock:
                    if connected is self._socket:
                        self._drop_connection()
            if connected is not self._socket:
                connection.disconnect()
        return None

    def _alive_for_s(self, since: float, seconds: float, left_s: float) -> float:
        """Return how long a waiter may wait before it checks the connection. If the check is due,
        this sends a PING, or closes the connection if the last PING was not answered."""
        now = self._clock()
        patience_s = sockets.silence_s(min(self._endpoint.reply_s, left_s))
        if self._pinged_at > self._received_at:
            due = max(self._pinged_at, since) + patience_s  # earlier, perhaps no waiter read
        else:
            due = max(self._received_at, since) + ping_after_s(seconds)
        if due > now:
            return due - now
        return patience_s if self._check_alive(now, patience_s) else 0.0

    def _check_alive(self, now: float, patience_s: float) -> bool:
        """Send a PING unless one is unanswered. Returns whether the connection may still be alive.

        The reader notices at once that the server closed it. That it is dead shows only in a PONG
        that does not come.
        """
        with self._lock:
            if self._connection is None:
                return False
            if self._pinged_at <= self._received_at:
                self._pinged_at = now
                try:
                    self._socket.sendall(codec.PING)
                except BaseException as error:
                    self._drop_connection()  # a part of the PING may have been sent
                    if not errors.is_broken(error):
                        raise
                    return False
            elif now - self._pinged_at >= patience_s:
                self._drop_connection()
                return False
            return True

    def _connect(self, until: float | None) -> None:
        connection = self._endpoint.blocking_connection()
        replies = codec.Replies(pushes=True)
        try:
            reply_s = self._endpoint.reply_s
            end = self._clock() + reply_s if until is None else until
            connect_in_time(connection, end, self._clock)
            connection._sock.sendall(codec.subscribe_command(self.channel))
            while (reply := replies.next()) is codec.INCOMPLETE:
                received = connection._sock.recv(sockets.RECEIVE_BYTES)
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                replies.feed(received)
            codec.check_subscribed(reply, self.channel)
            with self._lock:
                if self._connection is not None:  # another thread was faster
                    connection.disconnect()
                    return
                self._timeout = Timeout(connection._sock, MAX_TIMEOUT_S, SHORT_S)
                self._replies = replies
                self._connection = connection
                self._socket = connection._sock
                self._generation += 1
                self._received_at = self._clock()
        except BaseException as error:
            if self._connection is connection:
                self._connection = self._socket = None
            connection.disconnect()
            if not errors.is_broken(error):
                raise
            raise errors.connect_error(error, str(self._endpoint)) from error

    def _drop_connection(self) -> None:
        if self._connection is not None:  # disconnect first: an interruption leaves nothing open
            if self._reader is None:
                self._connection.disconnect()
            else:
                # That ends the reader's wait, and the reader disconnects. Under eventlet a wait on
                # a descriptor that another greenlet closes has no end.
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
        self._connection = self._socket = None
        self._generation += 1
        for inbox in list(self._inboxes.values()):
            if inbox.event is not None:
                inbox.event.set()


def _own_handler_error() -> LockUnavailable:
    """Return the error of a signal handler that would wait for ever for its own thread, which is
    opening the connection."""
    error = LockUnavailable(
        "could not wait for this lock in a signal handler: the handler interrupted its own thread "
        "while that connected to the server, in order to wait for a lock itself. Try again when "
        "the handler has returned, or use acquire(timeout=0)"
    )
    error.retryable = False
    return error

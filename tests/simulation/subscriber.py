"""Connections for messages, and the inboxes of the waiters that receive them."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from lualock._protocol import AwaitMessage, Subscribe
from tests.simulation.connections import Done
from tests.simulation.world import US

if TYPE_CHECKING:
    from tests.simulation.network import Process


class SubscriberConnection:
    """A connection for messages."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._at = 0
        self.open = True
        subscriber.process.world.server.subscribers.setdefault(subscriber.channel, []).append(self)

    def carry(self, message: bytes) -> None:
        """Send a message from the server."""
        process = self._subscriber.process
        at = self._at = process.arrival(self._at)
        process.world.at(at, process._act, self._arrived, (message,))

    def stall(self, us: int) -> None:
        """Let no message arrive for some time."""
        process = self._subscriber.process
        self._at = max(self._at, process.world.now + us)
        process.world.fault("slow", process=process.name, lasts_us=us)

    def _arrived(self, message: bytes) -> None:
        if self.open:
            self._subscriber.receive(message)

    def broken(self, notices_us: int = 150) -> None:
        """End the connection at the server; its process notices after a while."""
        process = self._subscriber.process
        server = process.world.server
        for subscribers in server.subscribers.get(self._subscriber.channel, []), server.astray:
            if self in subscribers:
                subscribers.remove(self)
        process.soon(notices_us, self.close)

    def go_astray(self, us: int) -> None:
        """Stay connected, for so long, to a server that is no longer the primary, but repeats the
        primary's messages."""
        process = self._subscriber.process
        process.world.server.astray.append(self)
        # A waiter that receives such a message believes that it has the lock until its claim.
        process.world.fault("astray", us)
        process.world.after(us, self.broken)

    def repeat(self, channel: bytes, message: bytes) -> None:
        """Repeat a message of the primary, if it is for this channel."""
        if channel == self._subscriber.channel:
            self.carry(message)

    def close(self) -> None:
        """Let the process notice that the connection is closed."""
        if self.open:
            self.open = False
            self._subscriber.connection_lost(self)


class _Inbox:
    """The messages of one waiter."""

    __slots__ = ("done", "messages", "since")

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.done: Done | None = None
        self.since = 0

    def put(self, message: bytes | None) -> None:
        if self.done is not None:
            done, self.done = self.done, None
            done(message)
        elif message is not None:
            self.messages.append(message)


class Subscriber:
    """Receives the messages of one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.channel = b"wake:" + process.name.encode()
        self.connection: SubscriberConnection | None = None
        self._inboxes: dict[bytes, _Inbox] = {}
        self._count = 0

    def listen(self, step: Subscribe, done: Done) -> None:
        """Receive messages for the token from now on."""
        inbox = self._inboxes.setdefault(step.token, _Inbox())
        if step.anew and inbox.since == self._count and self.connection is not None:
            self.connection.broken(0)
            self.connection.close()
        if self.connection is not None:
            inbox.since = self._count
            done(self.channel)
            return
        ready = partial(self._subscribed, inbox, done)
        self.process.connect(step.until, ready, done, calls=False)

    def _subscribed(self, inbox: _Inbox, done: Done) -> None:
        if self.connection is None:
            self.connection = SubscriberConnection(self)
            self._count += 1
        inbox.since = self._count
        done(self.channel)

    def receive(self, message: bytes) -> None:
        """Put a message into its inbox."""
        inbox = self._inboxes.get(message[:22])
        if inbox is not None:
            inbox.put(message[22:])

    def connection_lost(self, connection: SubscriberConnection) -> None:
        """Tell all waiters that the connection broke, and messages may be lost."""
        if self.connection is connection:
            self.connection = None
            self._count += 1
            for inbox in list(self._inboxes.values()):
                inbox.put(b"")

    def wait(self, step: AwaitMessage, done: Done) -> None:
        """Wait for the next message; None when the time has passed."""
        assert step.token is not None
        inbox = self._inboxes[step.token]
        if inbox.messages:
            done(inbox.messages.popleft())
        elif inbox.since != self._count:
            done(b"")
        else:
            inbox.done = done
            self.process.soon(int(min(step.seconds, 86_400) * US) + 1, self._over, inbox, done)

    def _over(self, inbox: _Inbox, done: Done) -> None:
        if inbox.done is done:
            inbox.put(None)

    def forget(self, token: bytes) -> None:
        """Receive no more messages for the token."""
        self._inboxes.pop(token, None)

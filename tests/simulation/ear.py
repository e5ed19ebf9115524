"""Connections for messages, and who listens by them."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from lualock._protocol import AwaitMessage, Subscribe
from tests.simulation.lines import Done
from tests.simulation.world import US

if TYPE_CHECKING:
    from tests.simulation.network import Process


class EarLine:
    """A connection for messages."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._at = 0
        self.open = True
        ear.process.world.server.ears.setdefault(ear.channel, []).append(self)

    def carry(self, message: bytes) -> None:
        """The server sends a message."""
        process = self._ear.process
        at = self._at = process.arrival(self._at)
        process.world.at(at, process._act, self._heard, (message,))

    def stalls(self, us: int) -> None:
        """No message arrives for some time."""
        process = self._ear.process
        self._at = max(self._at, process.world.now + us)
        process.world.fault("slow", who=process.name, lasts_us=us)

    def _heard(self, message: bytes) -> None:
        if self.open:
            self._ear.heard(message)

    def broken(self, notices_us: int = 150) -> None:
        """The server has it no more; its process notices after a while."""
        process = self._ear.process
        server = process.world.server
        for ears in server.ears.get(self._ear.channel, []), server.astray:
            if self in ears:
                ears.remove(self)
        process.soon(notices_us, self.close)

    def goes_astray(self, us: int) -> None:
        """The server that it is connected to is no primary any more, but repeats, for so long,
        what is said at the one that is."""
        process = self._ear.process
        process.world.server.astray.append(self)
        # Who takes such a message for its own has the lock until it has asked.
        process.world.fault("astray", us)
        process.world.after(us, self.broken)

    def repeat(self, channel: bytes, message: bytes) -> None:
        """What was said elsewhere, if it is for this channel."""
        if channel == self._ear.channel:
            self.carry(message)

    def close(self) -> None:
        """Its process sees that it is closed."""
        if self.open:
            self.open = False
            self._ear.lost(self)


class _Place:
    """Where one waiter finds its messages."""

    __slots__ = ("done", "messages", "since")

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.done: Done | None = None
        self.since = 0

    def tell(self, message: bytes | None) -> None:
        if self.done is not None:
            done, self.done = self.done, None
            done(message)
        elif message is not None:
            self.messages.append(message)


class Ear:
    """What listens for the messages of one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.channel = b"wake:" + process.name.encode()
        self.line: EarLine | None = None
        self._places: dict[bytes, _Place] = {}
        self._count = 0

    def listen(self, step: Subscribe, done: Done) -> None:
        """Hear messages for the token from now on."""
        place = self._places.setdefault(step.token, _Place())
        if step.anew and place.since == self._count and self.line is not None:
            self.line.broken(0)
            self.line.close()
        if self.line is not None:
            place.since = self._count
            done(self.channel)
            return
        ready = partial(self._subscribed, place, done)
        self.process.connect(step.until, ready, done, calls=False)

    def _subscribed(self, place: _Place, done: Done) -> None:
        if self.line is None:
            self.line = EarLine(self)
            self._count += 1
        place.since = self._count
        done(self.channel)

    def heard(self, message: bytes) -> None:
        """A message came."""
        place = self._places.get(message[:22])
        if place is not None:
            place.tell(message[22:])

    def lost(self, line: EarLine) -> None:
        """The connection broke: messages may have been lost."""
        if self.line is line:
            self.line = None
            self._count += 1
            for place in list(self._places.values()):
                place.tell(b"")

    def wait(self, step: AwaitMessage, done: Done) -> None:
        """The next message, or None when the time has passed."""
        assert step.token is not None
        place = self._places[step.token]
        if place.messages:
            done(place.messages.popleft())
        elif place.since != self._count:
            done(b"")
        else:
            place.done = done
            self.process.soon(int(min(step.seconds, 86_400) * US) + 1, self._over, place, done)

    def _over(self, place: _Place, done: Done) -> None:
        if place.done is done:
            place.tell(None)

    def forget(self, token: bytes) -> None:
        """Hear no more messages for the token."""
        self._places.pop(token, None)

"""Messages for tasks that wait: one connection for all tasks of an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from lualock._core.clock import MAX_TIMER_S
from lualock._protocol import CHECK_LATE_S, Subscribe
from lualock._transport import codec, sockets
from lualock._transport.asyncio import opening
from lualock._transport.asyncio.connection import PipelinedConnection
from lualock._transport.asyncio.futures import consume_exception
from lualock._transport.threads.subscriber import DOUBTED_S, PING_AFTER_S, ping_after_s

if TYPE_CHECKING:
    from lualock._transport.asyncio.driver import AsyncDriver


class _Inbox:
    """The messages of one waiter."""

    __slots__ = ("generation", "messages", "timer", "waiter")

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.waiter: asyncio.Future[bytes | None] | None = None
        self.timer: asyncio.TimerHandle | None = None  # ends the wait
        self.generation = 0  # of the connection that the waiter knows of

    def shorten_wait(self, seconds: float) -> bool:
        """Let the waiter wait at most that long from now on. Returns whether there is a waiter."""
        timer = self.timer
        if timer is None:
            return False
        loop = asyncio.get_running_loop()
        if timer.when() > loop.time() + seconds:
            timer.cancel()
            self.timer = loop.call_later(seconds, self.wake, None)
        return True

    def wake(self, message: bytes | None) -> None:
        """Wake the waiter with a message; ``None``: its time is over."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(message)
        elif message is not None:
            self.messages.append(message)


class Subscriber:
    """Receive the messages of one event loop.

    When the connection breaks, messages may be lost: each waiter then checks the queue.
    """

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        self._driver = driver
        self._loop = loop
        self._channel = driver.channel(loop)
        self._connection: PipelinedConnection | None = None
        self._opening = opening.Opening(driver.endpoint, driver.clock, loop)
        self._inboxes: dict[bytes, _Inbox] = {}
        self._generation = 0  # of the connection: it changes when one is lost or opened
        self._ping: asyncio.Future[Any] | None = None
        self._check: asyncio.TimerHandle | None = None  # whether the connection is alive
        self._stopped = False

    async def listen(self, step: Subscribe) -> bytes:
        """Receive messages for the step's token from now on. Returns their channel."""
        until, is_new = step.until, step.token not in self._inboxes
        inbox = self._inboxes.setdefault(step.token, _Inbox())
        old = self._connection
        silent_s = 0.0 if old is None else self._loop.time() - old.received_at
        if (is_new and len(self._inboxes) == 1 and silent_s > DOUBTED_S) or (
            step.anew and inbox.generation == self._generation
        ):
            self.close()
        if self._connection is None or not self._connection.open:
            while self._connection is None or not self._connection.open:
                if self._stopped:
                    return await (await self._driver.connections()).subscriber.listen(step)
                if not await self._opening.wait_for_other(until):
                    with self._opening.attempt(until):
                        opened = await self._opening.open(self._subscribe, until)
                        self._connection = opening.keep_one(
                            opened, self._connection, stopped=self._stopped
                        )
                        self._generation += 1
        elif silent_s > PING_AFTER_S and (self._ping is None or self._ping.done()):
            # If the connection is dead, the missing reply to a PING ends it.
            self._ping = self._connection.ask(codec.PING, b"")
            self._ping.add_done_callback(consume_exception)
        inbox.generation = self._generation
        return self._channel

    async def wait(self, token: bytes, seconds: float) -> bytes | None:
        """Return the next message for ``token``, or ``None`` if none comes within ``seconds``."""
        inbox = self._inboxes.get(token)
        if inbox is None:  # it listened on connections that were closed since
            return b""
        if inbox.messages:
            return inbox.messages.popleft()
        if inbox.generation != self._generation:
            return b""
        loop = self._loop
        inbox.waiter = loop.create_future()
        inbox.timer = loop.call_later(min(seconds, MAX_TIMER_S), inbox.wake, None)
        if seconds > sockets.SILENCE_MIN_S:
            self._check_by(loop.time() + ping_after_s(seconds))
        try:
            return await inbox.waiter
        finally:
            inbox.timer.cancel()
            inbox.waiter = inbox.timer = None

    def forget(self, token: bytes) -> None:
        """Receive no more messages for ``token``."""
        self._inboxes.pop(token, None)

    def close(self) -> None:
        """Close the connection. Waiters check again, and open another one when they listen."""
        if self._connection is not None:
            self._connection.close()

    def stop(self) -> None:
        """Close the connection for good: the next waiter uses the loop's new connections."""
        self._stopped = True
        self.close()
        if self._check is not None:
            self._check.cancel()

    def _check_by(self, when: float) -> None:
        if self._check is not None:
            if self._check.when() <= when:
                return
            self._check.cancel()
        self._check = self._loop.call_at(when, self._check_alive)

    def _check_alive(self) -> None:
        """Send a PING if a waiter waits and the connection is silent: the waiter must not miss its
        turn on a dead connection."""
        self._check = None
        ends = [inbox.timer.when() for inbox in self._inboxes.values() if inbox.timer is not None]
        connection = self._connection
        if not ends or connection is None or not connection.open:
            return
        now = self._loop.time()
        left_s = min(ends) - now
        due = connection.received_at + ping_after_s(left_s)
        if due > now:
            self._check_by(due)
            return
        ping = connection.ask(codec.PING, b"")
        ping.add_done_callback(consume_exception)
        patience_s = sockets.silence_s(min(self._driver.endpoint.reply_s, left_s))
        self._loop.call_later(patience_s, self._judge, connection, ping)

    def _judge(self, connection: PipelinedConnection, ping: asyncio.Future[Any]) -> None:
        if not ping.done():
            connection.close()
        elif self._check is None:
            self._check_alive()

    async def _subscribe(self) -> PipelinedConnection:
        connection = await opening.connect(self._driver.endpoint, self._on_message, self._on_lost)
        try:
            reply = await connection.ask(codec.subscribe_command(self._channel), b"")
            codec.check_subscribed(reply, self._channel)
        except BaseException:
            connection.close()
            raise
        return connection

    def _on_message(self, message: bytes) -> None:
        if (inbox := self._inboxes.get(message[:22])) is not None:
            rest = message[22:]
            # The new head of the queue need not be woken just to wait again: that would cost more
            # than all the rest of a hand-over costs here.
            if rest[:1] == b"=" and inbox.shorten_wait(int(rest[1:]) / 1000 + CHECK_LATE_S):
                return
            inbox.wake(rest)

    def _on_lost(self) -> None:
        self._generation += 1
        for inbox in self._inboxes.values():
            inbox.wake(b"")

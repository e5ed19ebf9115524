"""What one event loop has: connections for calls, a subscriber, and clean-up that is due later."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from lualock._protocol import CleanupLater
from lualock._transport import codec
from lualock._transport.asyncio import opening
from lualock._transport.asyncio.connection import PipelinedConnection
from lualock._transport.asyncio.futures import consume_exception
from lualock._transport.asyncio.subscriber import Subscriber
from lualock.errors import LockError

if TYPE_CHECKING:
    from lualock._transport.asyncio.driver import AsyncDriver

DRAIN_TURNS, DRAIN_S = 3, 0.2
"""When the loop ends, wait until no request was sent for this many turns of the loop, but at most
this long."""


def drop_closed(by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any]) -> None:
    """Forget loops that were closed without notice. The value kept for a loop refers to it, so a
    weak key alone would not end it."""
    for ref in by_loop.keyrefs():  # made at once: other threads add theirs
        if (loop := ref()) is not None and loop.is_closed():
            by_loop.pop(loop, None)


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs here.

    :raises LockError: none does.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise LockError(
            "could not use lualock.aio: no event loop of asyncio runs here. Run the code with "
            "asyncio.run(), or with anyio on its asyncio backend; under trio use the threads API "
            "in trio.to_thread.run_sync()"
        ) from None


class LoopConnections:
    """The connections of one event loop."""

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        self._driver = driver
        self.loop = loop
        self.connection: PipelinedConnection | None = None  # for calls; it may be broken
        self._opening = opening.Opening(driver.endpoint, driver.clock, loop)
        # While that one is silent: another one, on which requests are sent again.
        self._spare: PipelinedConnection | None = None
        self._opening_spare = opening.Opening(driver.endpoint, driver.clock, loop)
        self.subscriber = Subscriber(driver, loop)
        self._cleanups: dict[int, asyncio.TimerHandle] = {}  # by the id of the step
        self._closed = False  # for good: a later caller opens others
        self._generator: Any = None  # an asynchronous generator, which the loop ends when it ends
        self._on_end: list[Callable[[], None]] = []

    # The connection for calls.

    async def calls(self, until: float | None) -> PipelinedConnection:
        """Return the connection for calls; open it if there is none."""
        while self.connection is None or not self.connection.open:
            if self._closed:
                return await (await self._driver.connections()).calls(until)
            if not await self._opening.wait_for_other(until):
                with self._opening.attempt(until):
                    opened = await self._opening.open(self._open, until)
                    self.connection = opening.keep_one(
                        opened, self.connection, stopped=self._closed
                    )
        return self.connection

    def open_now(self) -> PipelinedConnection | None:
        """Return the connection for calls, if one is open."""
        connection = self.connection
        return connection if connection is not None and connection.open else None

    async def other_than(self, silent: PipelinedConnection, until: float) -> PipelinedConnection:
        """Return a connection for calls other than this silent one; open it if there is none."""
        if (connection := self.open_now()) is not None and connection is not silent:
            return connection
        while self._spare is None or not self._spare.open:
            if not await self._opening_spare.wait_for_other(until):
                with self._opening_spare.attempt(until):
                    opened = await self._opening_spare.open(self._open, until)
                    self._spare = opening.keep_one(opened, self._spare, stopped=self._closed)
        return self._spare

    def answered(self, first: PipelinedConnection, silent: PipelinedConnection) -> None:
        """Keep the connection that answered first, and close the other one."""
        if first is self._spare:
            self._spare = None
            if self.connection is silent or self.open_now() is None:
                self.connection = first
        if first is not silent:
            silent.close()
        elif self._spare is not None:
            self._spare.close()
            self._spare = None

    async def _open(self) -> PipelinedConnection:
        driver = self._driver
        connection = await opening.connect(driver.endpoint)
        try:
            if not driver.server_checked:
                codec.check_hello(await connection.ask(codec.HELLO, b""))
                published = await connection.ask(codec.publish_nothing(driver.prefix), b"")
                codec.check_published(published)
                driver.server_checked = True
            sent_at = driver.clock()
            time = connection.ask(codec.TIME, b"")
            echo = connection.ask(*codec.echo())  # proves that the time is not an older reply
            echo.add_done_callback(consume_exception)
            server_us = codec.server_us(await time)
            received_at = driver.clock()
            await echo
            driver.server_clock.compare(sent_at, received_at, server_us)
        except BaseException:
            connection.close()
            raise
        return connection

    # Clean-up that is due later.

    def cleanup_later(self, step: CleanupLater) -> None:
        """Make the call when the orphan has expired, unless its connection has lived until then:
        requests on one connection arrive in order."""
        delay_s = max(0.0, step.orphan.expires - self._driver.clock())
        self._cleanups[id(step)] = self.loop.call_later(delay_s, self._cleanup_now, step)

    def _cleanup_now(self, step: CleanupLater) -> None:
        del self._cleanups[id(step)]
        connection = step.orphan.via
        if connection is None or not connection.open:
            self._driver.clean(step.call)

    # The end.

    async def begin(self) -> None:
        """Close these connections when the loop ends."""
        self._generator = self._close_with_loop()
        await anext(self._generator)

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        # A loop finalises its asynchronous generators before it closes (asyncio.run does). No other
        # notice exists, and a program that never calls aclose() leaves nothing open.
        try:
            yield
        finally:
            await self._close()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call this when the connections are about to be closed."""
        self._on_end.append(callback)

    async def aclose(self) -> None:
        """Close the connections for good. If they are closed already, return at once."""
        await self._close()
        generator = self._generator
        # The loop may be ending it at the same time, and a generator is closed by one only.
        if generator is not None and not generator.ag_running:
            await generator.aclose()

    async def _close(self) -> None:
        if self._driver.uses(self):
            await self._drain()
        if self._driver.uses(self):
            self._driver.drop(self)
            tasks = self._driver.background.tasks(self.loop)
            for task in tasks:  # before they notice that the connection is gone
                task.cancel()
            self._stop()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # asyncio closes an aborted transport in its next turn

    async def _drain(self) -> None:
        """Wait for the requests of other generators. The loop ends all generators at the same time;
        a user's generator may release a lock, and needs the connection, or a new one."""
        self._call_on_end()
        end, idle_turns = self.loop.time() + DRAIN_S, 0
        while idle_turns < DRAIN_TURNS and self.loop.time() < end:
            busy = self._busy
            # A caller whose reply has just come sends its next request one turn later.
            idle_turns = 0 if busy else idle_turns + 1
            await asyncio.sleep(0.001 if busy else 0)

    @property
    def _busy(self) -> bool:
        """Whether a caller waits for a reply, or for the connection to send its request on."""
        connection = self.open_now()
        return self._opening.running if connection is None else connection.busy

    def _call_on_end(self) -> None:
        while self._on_end:
            self._on_end.pop()()

    def _stop(self) -> None:
        self._closed = True
        self._call_on_end()
        for timer in self._cleanups.values():
            timer.cancel()
        for connection in (self.connection, self._spare):
            if connection is not None:
                connection.close()
        self.subscriber.stop()

"""The connections of one event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lualock._protocol import CHECK_LATE_S, CleanupLater, Subscribe
from lualock._transport import codec, errors, sockets
from lualock._transport.asyncio.connection import PipelinedConnection
from lualock._transport.asyncio.posted import seen
from lualock._transport.threads.subscriber import DOUBTED_S, PING_AFTER_S
from lualock.errors import LockUnavailable

if TYPE_CHECKING:
    from lualock._transport.asyncio.driver import AsyncDriver


def drop_closed(by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any]) -> None:
    """Forget loops that were closed, which nobody told us. What is kept of a loop refers to it, so
    it would stay."""
    for ref in by_loop.keyrefs():  # made at once: other threads add theirs
        if (loop := ref()) is not None and loop.is_closed():
            by_loop.pop(loop, None)


class _Inbox:
    """Where one waiter finds its messages."""

    __slots__ = ("messages", "since", "timer", "waiter")

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.waiter: asyncio.Future[bytes | None] | None = None
        self.timer: asyncio.TimerHandle | None = None  # ends its wait
        self.since = 0

    def wait_less(self, seconds: float) -> bool:
        """Let the waiter wait no longer than that from now on; whether there is one."""
        timer = self.timer
        if timer is None:
            return False
        loop = asyncio.get_running_loop()
        if timer.when() > loop.time() + seconds:
            timer.cancel()
            self.timer = loop.call_later(seconds, self.tell, None)
        return True

    def tell(self, message: bytes | None) -> None:
        """Wake the waiter; ``None``: its time is over."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(message)
        elif message is not None:
            self.messages.append(message)


class LoopConnections:
    """What one event loop has."""

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        self._driver = driver
        self.loop = loop
        self._channel = driver.channel(loop)
        self.mux: PipelinedConnection | None = None  # for calls; it may have broken
        self._beside: PipelinedConnection | None = (
            None  # while that one is silent: another, where it asks again
        )
        self._ear: PipelinedConnection | None = None
        # While somebody makes a connection: done when that has ended. The result is what went wrong
        # with an attempt that had all its time: it goes for those who waited, too.
        # And whether it is the second, beside one that takes long.
        self._opening: dict[str, tuple[asyncio.Future[str | None], bool]] = {}
        self._places: dict[bytes, _Inbox] = {}
        self._count = 0  # of connections for messages, one after the other
        self._pinged: asyncio.Future[Any] | None = None
        self._cleanups: dict[int, asyncio.TimerHandle] = {}  # by the step that it carries out
        self._closed = False  # for good: who comes next makes others
        self.at_loop_end: Any = None  # an asynchronous generator; its type does not say all it has
        self.ends: list[Callable[[], None]] = []  # what else has to be told

    def stop(self) -> None:
        """Do nothing of its own any more; who still wants something may have it."""
        while self.ends:
            self.ends.pop()()

    def close(self) -> None:
        self._closed = True
        self.stop()
        for timer in self._cleanups.values():
            timer.cancel()
        for mux in (self.mux, self._beside, self._ear):
            if mux is not None:
                mux.close()

    def open_now(self) -> PipelinedConnection | None:
        """The connection for calls, if there is one."""
        return self.mux if self.mux is not None and self.mux.open else None

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a reply, or for the connection that he would ask on."""
        mux = self.open_now()
        return "calls" in self._opening if mux is None else mux.busy

    async def beside(self, mux: PipelinedConnection, until: float) -> PipelinedConnection:
        """Another connection for calls than this one, which is silent."""
        if self.mux is not None and self.mux is not mux and self.mux.open:
            return self.mux
        while self._beside is None or not self._beside.open:
            if not await self._another_opens("beside", until):
                with self._opens("beside", until):
                    made = await self._driver._within(until, self._open)
                    self._beside = self._wanted(made, self._beside)
        return self._beside

    def answered(self, mux: PipelinedConnection, silent: PipelinedConnection) -> None:
        """Of two connections this one answered first; the other one is closed."""
        if mux is self._beside:
            self._beside = None
            if self.mux is silent or self.mux is None or not self.mux.open:
                self.mux = mux
        if mux is not silent:
            silent.close()
        elif self._beside is not None:
            self._beside.close()
            self._beside = None

    async def calls(self, until: float | None) -> PipelinedConnection:
        """The connection for calls."""
        while self.mux is None or not self.mux.open:
            if self._closed:
                return await (await self._driver._connections()).calls(until)
            if not await self._another_opens("calls", until):
                with self._opens("calls", until):
                    made = await self._driver._within(until, self._open)
                    self.mux = self._wanted(made, self.mux)
        return self.mux

    def _wanted(
        self, made: PipelinedConnection, now: PipelinedConnection | None
    ) -> PipelinedConnection:
        """Which connection is kept: a new one, or the one that another made meanwhile. The new one
        is closed also if all were while it was being made, for nobody would come to close it."""
        if now is not None and now.open:
            made.close()
            return now
        if self._closed:
            made.close()
        return made

    @contextmanager
    def _opens(self, what: str, until: float | None) -> Iterator[None]:
        ended: asyncio.Future[str | None] = self.loop.create_future()
        self._opening[what] = ended, what in self._opening
        why, made = None, False
        try:
            yield
            made = True
        except LockUnavailable as error:
            if until is None and type(error) is LockUnavailable:
                why = str(error)
            raise
        finally:
            last, _ = self._opening.get(what, (ended, False))
            for attempt in {ended, last} if made else {ended}:
                if not attempt.done():
                    attempt.set_result(why)
            if last is ended:
                self._opening.pop(what, None)

    async def _another_opens(self, what: str, until: float | None) -> bool:
        """Wait while another makes the connection. Whether there is none to make any more.
        An attempt that began while the server was silent may stay so: one more is made beside it.

        :raises LockUnavailable: it failed, or the time is over.
        """
        if what not in self._opening:
            return False
        ended, is_second = self._opening[what]
        left_s = self._driver.endpoint.reply_s if until is None else until - self._driver.clock()
        silence_s: float | None = sockets.silence_s(left_s)
        if is_second or sockets.silence_s(left_s) >= left_s:
            silence_s = None if until is None else left_s
        done, _ = await asyncio.wait({ended}, timeout=silence_s)
        if done and (why := ended.result()) is not None:
            # Each trying in turn, the last of a thousand would hear of it after an hour.
            raise LockUnavailable(why)
        if not done and until is not None and self._driver.clock() >= until:
            raise errors.connect_error(
                TimeoutError("the time was over"), str(self._driver.endpoint)
            )
        return bool(done) or self._opening.get(what, (None, False))[0] is not ended

    async def _open(self) -> PipelinedConnection:
        driver = self._driver
        mux = await driver._connect()
        try:
            if not driver._server_checked:
                codec.check_hello(await mux.ask(codec.HELLO, b""))
                driver._server_checked = True
            sent = driver.clock()
            told, proved = mux.ask(codec.TIME, b""), mux.ask(*codec.echo())
            proved.add_done_callback(seen)
            server_us = codec.server_us(await told)
            received = driver.clock()
            await proved
            driver.server_clock.compare(sent, received, server_us)
        except BaseException:
            mux.close()
            raise
        return mux

    async def listen(self, step: Subscribe) -> bytes:
        """Hear messages for its token from now on; returns the channel they come by."""
        until, comes = step.until, step.token not in self._places
        place = self._places.setdefault(step.token, _Inbox())
        silent_s = 0.0 if self._ear is None else self.loop.time() - self._ear.heard
        if (comes and len(self._places) == 1 and silent_s > DOUBTED_S) or (
            step.anew and place.since == self._count
        ):
            self.stop_listening()
        if self._ear is None or not self._ear.open:
            while self._ear is None or not self._ear.open:
                if self._closed:
                    return await (await self._driver._connections()).listen(step)
                if not await self._another_opens("ear", until):
                    with self._opens("ear", until):
                        made = await self._driver._within(until, self._subscribe)
                        self._ear = self._wanted(made, self._ear)
                        self._count += 1
        elif silent_s > PING_AFTER_S and (self._pinged is None or self._pinged.done()):
            # Nothing for long: if the connection is dead, the missing reply will tell.
            self._pinged = self._ear.ask(codec.PING, b"")
            self._pinged.add_done_callback(seen)
        place.since = self._count
        return self._channel

    def stop_listening(self) -> None:
        """Close the connection for messages. Who waits is told, and listens again."""
        if self._ear is not None:
            self._ear.close()

    async def _subscribe(self) -> PipelinedConnection:
        mux = await self._driver._connect(self._heard, self._lost)
        try:
            reply = await mux.ask(codec.subscribe(self._channel), b"")
            codec.check_subscribed(reply, self._channel)
        except BaseException:
            mux.close()
            raise
        return mux

    def _heard(self, payload: bytes) -> None:
        if (place := self._places.get(payload[:22])) is not None:
            message = payload[22:]
            # Who is first now need not be woken just to wait again: that would cost more than all
            # else that a hand-over costs here.
            if message[:1] == b"=" and place.wait_less(int(message[1:]) / 1000 + CHECK_LATE_S):
                return
            place.tell(message)

    def _lost(self) -> None:
        self._count += 1
        for place in self._places.values():
            place.tell(b"")

    async def wait(self, token: bytes, seconds: float) -> bytes | None:
        """The next message for ``token``; ``None`` if there is none within ``seconds``."""
        place = self._places.get(token)
        if place is None:  # it listened on connections that were closed since
            return b""
        if place.messages:
            return place.messages.popleft()
        if place.since != self._count:
            return b""
        loop = asyncio.get_running_loop()
        place.waiter = loop.create_future()
        place.timer = loop.call_later(min(seconds, 86_400.0), place.tell, None)
        try:
            return await place.waiter
        finally:
            place.timer.cancel()
            place.waiter = place.timer = None

    def cleanup_later(self, step: CleanupLater) -> None:
        """Make the call when the orphan has expired, unless its connection has lived until then:
        what was sent on that arrived in order."""
        late_s = max(0.0, step.orphan.expires - self._driver.clock())
        loop = asyncio.get_running_loop()
        self._cleanups[id(step)] = loop.call_later(late_s, self._cleanup_now, step)

    def _cleanup_now(self, step: CleanupLater) -> None:
        del self._cleanups[id(step)]
        via = step.orphan.via
        if via is None or not via.open:
            self._driver.clean(step.call)

    def forget(self, token: bytes) -> None:
        """Hear no more messages for ``token``."""
        self._places.pop(token, None)

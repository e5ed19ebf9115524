"""The driver for asyncio: two connections an event loop, one for calls and one for messages."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any, cast

from hiredis import ReplyError

from lualock import clock, fork
from lualock.drive import wire
from lualock.drive.cleaner import PATIENCE_S, PAUSE_MAX_S, PAUSE_MIN_S
from lualock.drive.connecting import connect_by_address
from lualock.drive.ear import DOUBTED_S, QUIET_S, quiet_s
from lualock.drive.endpoint import Endpoint
from lualock.drive.mux import Mux, Silence
from lualock.errors import LockError, LockUnavailable
from lualock.protocol import (
    LAST_WORD_S,
    LOOK_LATE_S,
    Batch,
    Call,
    Later,
    Listen,
    Post,
    Reach,
    ServerClock,
    Step,
    Steps,
    T,
    Wait,
)

GRACE_S = 0.02
"""How long a caller waits for its own clean-up: from its cancellation, or the end of its time."""

CLOSING_S = 1.0
"""How long :meth:`AsyncDriver.aclose` waits for what still cleans up."""


OTHERS_TURNS, OTHERS_S = 3, 0.2
"""For how many turns of a loop nothing is asked any more when whatever ends with it has ended, and
how long that may take."""


_mark: ContextVar[object] = ContextVar("lualock.mark", default=None)
"""In which of the tasks behind everybody's back this runs, also in a task that it started: that
cannot wait for its end."""


def _seen(future: asyncio.Future[Any]) -> None:
    """Look at it, so that asyncio does not report what nobody asks for."""
    if not future.cancelled():
        future.exception()


def drop_closed(by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any]) -> None:
    """Forget loops that were closed, which nobody told us. What is kept of a loop refers to it, so
    it would stay."""
    for ref in by_loop.keyrefs():  # made at once: other threads add theirs
        if (loop := ref()) is not None and loop.is_closed():
            by_loop.pop(loop, None)


class _Posted:
    """The reply to a posted call."""

    def __init__(self, driver: AsyncDriver, call: Post, mux: Mux) -> None:
        self._driver = driver
        self._call = call
        self._mux = mux
        self._watch(mux.call(call, source=call.lazy))

    def _watch(self, future: asyncio.Future[Any]) -> None:
        self._future = future
        future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()  # seen, so that asyncio does not report it
        if isinstance(error, Silence) and self._call.lazy:
            # Nobody asks again, as a waiter does whose look has no reply.
            again = self._driver.ask_again([self._call], self._mux, [error.later], None)
            self._watch(self._driver.spawn(_only(again)))
        elif isinstance(error, Silence):
            self._watch(error.later)
        elif error is None and wire.is_noscript(future.result()) and not self._call.moot:
            self._watch(self._mux.call(self._call, source=True))

    def poll(self) -> Any:
        """See :class:`lualock.protocol.Pending`."""
        if not self._future.done() or isinstance(self._future.exception(), Silence):
            return None
        reply = self._future.result()
        if isinstance(reply, ReplyError):
            if wire.is_noscript(reply):
                return None  # it is being sent again
            raise wire.reply_error(str(reply), self._call)
        return reply


def _later(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """What gets the reply of a question whose silence was told."""
    while future.done() and not future.cancelled() and isinstance(future.exception(), Silence):
        future = cast(Silence, future.exception()).later
    return future


def _done_with(futures: list[asyncio.Future[Any]]) -> None:
    """Nobody waits for these replies any more."""
    for future in map(_later, futures):
        if not future.cancel():
            _seen(future)


async def _only(again: Awaitable[tuple[Mux, list[Any]]]) -> Any:
    _, (reply,) = await again
    return reply


class _Place:
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


class _LoopConnections:
    """What one event loop has."""

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        self._driver = driver
        self.loop = loop
        self._channel = driver.channel(loop)
        self.mux: Mux | None = None  # for calls; it may have broken
        self._beside: Mux | None = None  # while that one is silent: another, where it asks again
        self._ear: Mux | None = None
        # While somebody makes a connection: done when that has ended. The result is what went wrong
        # with an attempt that had all its time: it goes for those who waited, too.
        # And whether it is the second, beside one that takes long.
        self._opening: dict[str, tuple[asyncio.Future[str | None], bool]] = {}
        self._places: dict[bytes, _Place] = {}
        self._count = 0  # of connections for messages, one after the other
        self._pinged: asyncio.Future[Any] | None = None
        self._doubts: asyncio.TimerHandle | None = None  # asks whether the connection is alive
        self._laying: dict[int, asyncio.TimerHandle] = {}  # by the step that it carries out
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
        for timer in self._laying.values():
            timer.cancel()
        if self._doubts is not None:
            self._doubts.cancel()
        for mux in (self.mux, self._beside, self._ear):
            if mux is not None:
                mux.close()

    def open_now(self) -> Mux | None:
        """The connection for calls, if there is one."""
        return self.mux if self.mux is not None and self.mux.open else None

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a reply, or for the connection that he would ask on."""
        mux = self.open_now()
        return "calls" in self._opening if mux is None else mux.busy

    async def beside(self, mux: Mux, until: float) -> Mux:
        """Another connection for calls than this one, which is silent."""
        if self.mux is not None and self.mux is not mux and self.mux.open:
            return self.mux
        while self._beside is None or not self._beside.open:
            if not await self._another_opens("beside", until):
                with self._opens("beside", until):
                    made = await self._driver._within(until, self._open)
                    self._beside = self._wanted(made, self._beside)
        return self._beside

    def answered(self, mux: Mux, silent: Mux) -> None:
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

    async def calls(self, until: float | None) -> Mux:
        """The connection for calls."""
        while self.mux is None or not self.mux.open:
            if self._closed:
                return await (await self._driver._connections()).calls(until)
            if not await self._another_opens("calls", until):
                with self._opens("calls", until):
                    made = await self._driver._within(until, self._open)
                    self.mux = self._wanted(made, self.mux)
        return self.mux

    def _wanted(self, made: Mux, now: Mux | None) -> Mux:
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
        silence_s: float | None = wire.silence_s(left_s)
        if is_second or wire.silence_s(left_s) >= left_s:
            silence_s = None if until is None else left_s
        done, _ = await asyncio.wait({ended}, timeout=silence_s)
        if done and (why := ended.result()) is not None:
            # Each trying in turn, the last of a thousand would hear of it after an hour.
            raise LockUnavailable(why)
        if not done and until is not None and self._driver.clock() >= until:
            raise wire.connect_error(TimeoutError("the time was over"), str(self._driver.endpoint))
        return bool(done) or self._opening.get(what, (None, False))[0] is not ended

    async def _open(self) -> Mux:
        driver = self._driver
        mux = await driver._connect()
        try:
            if not driver._server_checked:
                wire.check_hello(await mux.ask(wire.HELLO, b""))
                driver._server_checked = True
            sent = driver.clock()
            told, proved = mux.ask(wire.TIME, b""), mux.ask(*wire.echo())
            proved.add_done_callback(_seen)
            server_us = wire.server_us(await told)
            received = driver.clock()
            await proved
            driver.server_clock.compare(sent, received, server_us)
        except BaseException:
            mux.close()
            raise
        return mux

    async def listen(self, step: Listen) -> bytes:
        """Hear messages for its token from now on; returns the channel they come by."""
        until, comes = step.until, step.token not in self._places
        place = self._places.setdefault(step.token, _Place())
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
        elif silent_s > QUIET_S and (self._pinged is None or self._pinged.done()):
            # Nothing for long: if the connection is dead, the missing reply will tell.
            self._pinged = self._ear.ask(wire.PING, b"")
            self._pinged.add_done_callback(_seen)
        place.since = self._count
        return self._channel

    def stop_listening(self) -> None:
        """Close the connection for messages. Who waits is told, and listens again."""
        if self._ear is not None:
            self._ear.close()

    async def _subscribe(self) -> Mux:
        mux = await self._driver._connect(self._heard, self._lost)
        try:
            reply = await mux.ask(wire.subscribe(self._channel), b"")
            wire.check_subscribed(reply, self._channel)
        except BaseException:
            mux.close()
            raise
        return mux

    def _heard(self, payload: bytes) -> None:
        if (place := self._places.get(payload[:22])) is not None:
            message = payload[22:]
            # Who is first now need not be woken just to wait again: that would cost more than all
            # else that a hand-over costs here.
            if message[:1] == b"=" and place.wait_less(int(message[1:]) / 1000 + LOOK_LATE_S):
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
        if seconds > wire.SILENCE_LEAST_S:
            self._doubt_at(loop.time() + quiet_s(seconds))
        try:
            return await place.waiter
        finally:
            place.timer.cancel()
            place.waiter = place.timer = None

    def _doubt_at(self, when: float) -> None:
        if self._doubts is not None:
            if self._doubts.when() <= when:
                return
            self._doubts.cancel()
        self._doubts = self.loop.call_at(when, self._doubt)

    def _doubt(self) -> None:
        """Ask whether the connection for messages is alive, if somebody waits and it is silent: a
        turn of which a waiter does not hear would pass."""
        self._doubts = None
        ends = [place.timer.when() for place in self._places.values() if place.timer is not None]
        ear = self._ear
        if not ends or ear is None or not ear.open:
            return
        now = self.loop.time()
        left_s = min(ends) - now
        asks_at = ear.heard + quiet_s(left_s)
        if asks_at > now:
            self._doubt_at(asks_at)
            return
        pinged = ear.ask(wire.PING, b"")
        pinged.add_done_callback(_seen)
        patience_s = wire.silence_s(min(self._driver.endpoint.reply_s, left_s))
        self.loop.call_later(patience_s, self._judge, ear, pinged)

    def _judge(self, ear: Mux, pinged: asyncio.Future[Any]) -> None:
        if not pinged.done():
            ear.close()
        elif self._doubts is None:
            self._doubt()

    def lay(self, step: Later) -> None:
        """Make the call when the ghost has expired, unless its connection has lived until then:
        what was sent on that arrived in order."""
        late_s = max(0.0, step.ghost.expires - self._driver.clock())
        loop = asyncio.get_running_loop()
        self._laying[id(step)] = loop.call_later(late_s, self._lay, step)

    def _lay(self, step: Later) -> None:
        del self._laying[id(step)]
        via = step.ghost.via
        if via is None or not via.open:
            self._driver.clean(step.call)

    def forget(self, token: bytes) -> None:
        """Hear no more messages for ``token``."""
        self._places.pop(token, None)


class AsyncDriver:
    """Runs protocols in the calling task. Safe to share between tasks, and between loops."""

    blocks: Any
    """What is said of a lease's ``with`` blocks: see :class:`lualock.block.Blocks`."""

    def __init__(self, endpoint: Endpoint, prefix: bytes) -> None:
        self.endpoint = endpoint
        self.prefix = prefix
        self.clock = clock.now
        self.server_clock = ServerClock(self.clock, endpoint.reply_s)
        self._server_checked = False
        self._has_cleaned = False  # so the server knows that script, most probably
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """Loops and sockets are the parent's: a child starts with none."""
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopConnections] = (
            weakref.WeakKeyDictionary()
        )
        self._recent: _LoopConnections | None = None  # of the loop that asked last
        # Where a loop listens, also when its connections were closed and are made anew: somebody
        # may be waiting meanwhile.
        self._channels: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, bytes] = (
            weakref.WeakKeyDictionary()
        )
        # With their marks, and whether nobody waits for their end.
        self._cleaning: dict[asyncio.Task[Any], tuple[object, bool]] = {}

    def channel(self, loop: asyncio.AbstractEventLoop) -> bytes:
        """The channel of a loop."""
        return self._channels.setdefault(loop, wire.new_channel(self.prefix))

    async def run(self, steps: Steps[T]) -> T:
        """Carry the protocol out to its end, and return or raise what it does."""
        listens: tuple[asyncio.AbstractEventLoop, bytes] | None = None
        error: BaseException | None = None
        met: list[BaseException] | None = None
        try:
            while True:
                try:
                    step = steps.send(None) if error is None else steps.throw(error)
                    error = None
                    while True:
                        if type(step) is Call and (sent := self._ask_at_once(step)) is not None:
                            # The usual case, without the coroutines that the others need.
                            mux = step.via
                            try:
                                reply = await sent
                            except Silence as silence:
                                late = [silence.later]
                                mux, (reply,) = await self.ask_again([step], mux, late, None)
                            if type(reply) is ReplyError:
                                reply = await self._error_reply(step, mux, reply)
                        else:
                            if isinstance(step, Listen):
                                listens = asyncio.get_running_loop(), step.token
                            reply = await self._perform(step)
                        step = steps.send(reply)
                except StopIteration as done:
                    result: T = done.value
                    if met is not None:
                        wire.dealt_with(met)
                    return result
                except BaseException as broke:
                    # What the protocol raised itself ends it; all else is its to deal with.
                    if getgeneratorstate(steps) == GEN_CLOSED or isinstance(broke, GeneratorExit):
                        raise
                    error = broke
                    met = [*(met or ()), broke]
        finally:
            error = met = None  # or they and this frame would keep each other alive
            if listens is not None:
                loop, token = listens  # which may be closed: then nothing runs but the destruction
                if (connections := self._loops.get(loop)) is not None:
                    connections.forget(token)

    async def begin(self) -> bool:
        """Be told of this loop's end; false if it is ending already. No connection is made."""
        if getattr(asyncio.get_running_loop(), "_asyncgens_shutdown_called", False):
            return False  # asyncio would complain of a generator that begins now
        await self._connections()
        return True

    async def aclose(self) -> None:
        """Close this loop's connections, once what still cleans up has finished."""
        loop = asyncio.get_running_loop()
        mine = self._going_on(loop, lasting=False)
        if mine:
            _, late = await asyncio.wait(mine, timeout=CLOSING_S)
            for task in late:
                task.cancel()
        if (connections := self._loops.get(loop)) is not None:
            # The loop may be ending it at the same time, and a generator is closed by one only.
            await self._close(connections)
            ended = connections.at_loop_end
            if ended is not None and not ended.ag_running:
                await ended.aclose()

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Call):
            if step.compensating:
                return await self._compensate(step)
            return await (self._post(step) if isinstance(step, Post) else self._call(step))
        if isinstance(step, Wait) and step.token is None:
            await asyncio.sleep(step.seconds)
            return None
        connections = await self._connections()
        if isinstance(step, Batch):
            return await self._batch(connections, step)
        if isinstance(step, Later):
            return connections.lay(step)
        if isinstance(step, Reach):
            await connections.calls(step.until)
            return None
        if isinstance(step, Wait):
            assert step.token is not None
            return await connections.wait(step.token, step.seconds)
        return await connections.listen(step)

    async def _post(self, call: Post) -> _Posted:
        call.via = mux = await (await self._connections()).calls(call.until)
        await self._room(mux, call.until)
        posted = _Posted(self, call, mux)
        if call.lazy:
            # Its caller goes on at once, and may not let this turn of the loop end in time.
            mux.flush()
        return posted

    async def _room(self, mux: Mux, until: float | None) -> None:
        if not mux.ready:
            left_s = None if until is None else max(LAST_WORD_S, until - self.clock())
            await mux.room(left_s)

    async def _batch(self, connections: _LoopConnections, batch: Batch) -> list[Any]:
        calls, until = batch.calls, batch.until
        mux = await connections.calls(until)
        await self._room(mux, until)
        mux, replies = await self._replies(calls, mux, [mux.call(call) for call in calls], until)
        if any(type(reply) is ReplyError for reply in replies):
            await self._prove_order(mux, until)
        again = [at for at, reply in enumerate(replies) if wire.is_noscript(reply)]
        if again:  # one brings the source, and the others behind it find it there
            asked = [mux.call(calls[at], source=at == again[0]) for at in again]
            mux, found = await self._replies([calls[at] for at in again], mux, asked, until)
            for at, reply in zip(again, found, strict=True):
                replies[at] = reply
            if any(type(reply) is ReplyError for reply in found):
                await self._prove_order(mux, until)
        self._if_demoted(mux, replies)
        return [wire.answer(reply, call) for reply, call in zip(replies, calls, strict=True)]

    async def _compensate(self, call: Call) -> Any:
        # The caller is being cancelled, perhaps again and again: the clean-up goes on without it.
        over_s = 0.0 if call.until is None else max(0.0, self.clock() - call.until)
        call = replace(call, compensating=False, until=None)
        task = self.clean(call)
        done, _ = await asyncio.wait({task}, timeout=max(0.0, GRACE_S - over_s))
        if not done:
            raise LockUnavailable("the server does not answer; the clean-up goes on")
        return task.result()

    def clean(self, call: Call) -> asyncio.Task[Any]:
        """Make a call behind everybody's back, until it is answered."""
        return self.spawn(self._clean(call, self._send_now(call)))

    def forsake(self, call: Call) -> None:
        """Make a call that cleans up, from wherever this may be."""
        call = replace(call, compensating=False)
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        recent = self._recent
        if running in self._loops:
            self.clean(call)
        elif recent is None or recent.loop.is_closed():
            return
        elif recent.loop.is_running():  # in another thread
            recent.loop.call_soon_threadsafe(self.clean, call)
        elif (mux := recent.open_now()) is not None:
            # The loop was interrupted, and may never run again: what can be sent is sent.
            mux.call(call, source=True).add_done_callback(_seen)
            mux.flush()

    def _going_on(
        self, loop: asyncio.AbstractEventLoop, *, lasting: bool = True
    ) -> set[asyncio.Task[Any]]:
        mine = _mark.get()  # it may be an on_lost that closes all
        every = self._cleaning.copy()  # at once: other threads change it
        return {
            task
            for task, (mark, lasts) in every.items()
            if task.get_loop() is loop and mark is not mine and (lasting or not lasts)
        }

    def spawn(self, work: Coroutine[Any, Any, T], *, lasts: bool = False) -> asyncio.Task[T]:
        """Start a task behind everybody's back, which at the latest ends with the loop. ``lasts``:
        it is of something that goes on until all is closed, which does not wait for it."""
        mark = object()
        before = _mark.set(mark)
        try:
            task = asyncio.ensure_future(work)  # it has a copy of the context
        finally:
            _mark.reset(before)
        self._cleaning[task] = mark, lasts
        task.add_done_callback(self._cleaned)
        return task

    def at_loop_end(self, end: Callable[[], None]) -> None:
        """Call this when this loop's connections are closed."""
        if connections := self._loops.get(asyncio.get_running_loop()):
            connections.ends.append(end)

    def _send_now(self, call: Call) -> tuple[Mux, asyncio.Future[Any]] | None:
        # Who cancels all tasks there are, as asyncio.run does at its end, cancels the clean-up too,
        # perhaps before it has begun. With the source, where the server may not know the script.
        connections = self._loops.get(asyncio.get_running_loop())
        call.via = mux = None if connections is None else connections.open_now()
        if mux is None:
            return None
        sent = mux.call(call, source=not self._has_cleaned)
        mux.flush()  # an interrupted loop may have no more turn
        sent.add_done_callback(_seen)
        return mux, sent

    async def _clean(self, call: Call, sent: tuple[Mux, asyncio.Future[Any]] | None = None) -> Any:
        give_up = self.clock() + PATIENCE_S
        pause_s = PAUSE_MIN_S
        while True:
            try:
                reply = await self._call(call, sent)
                self._has_cleaned = True
                return reply
            except LockUnavailable:
                if self.clock() > give_up:
                    raise
            sent = None
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def _cleaned(self, task: asyncio.Task[Any]) -> None:
        self._cleaning.pop(task, None)
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not report it a second time

    async def _connections(self) -> _LoopConnections:
        if not fork.same[0]:
            fork.start_anew()
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            drop_closed(self._loops)
            found = self._loops[loop] = _LoopConnections(self, loop)
            found.at_loop_end = self._close_at_loop_end(found)
            await anext(found.at_loop_end)
        self._recent = found
        return found

    async def _close_at_loop_end(self, mine: _LoopConnections) -> AsyncGenerator[None, None]:
        # A loop finalises its asynchronous generators before it closes (asyncio.run does), which
        # is the one way to be told: a program that never calls aclose() leaves nothing open.
        try:
            yield
        finally:
            await self._close(mine)

    async def _close(self, mine: _LoopConnections) -> None:
        """Close a loop's connections; where that has been done, return at once."""
        loop = mine.loop
        if self._loops.get(loop) is mine:
            await self._let_others_end(mine)
        if self._loops.get(loop) is mine:
            del self._loops[loop]
            if self._recent is mine:
                self._recent = None
            going_on = self._going_on(loop)
            for task in going_on:  # before they notice that the connection is gone
                task.cancel()
            mine.close()
            await asyncio.gather(*going_on, return_exceptions=True)
            await asyncio.sleep(0)  # asyncio closes an aborted transport in its next turn

    async def _let_others_end(self, mine: _LoopConnections) -> None:
        """All generators are ended at the same time; a user's may give a lock back, and that needs
        the connection, or a new one where it broke."""
        mine.stop()
        loop = mine.loop
        give_up, quiet = loop.time() + OTHERS_S, 0
        while quiet < OTHERS_TURNS and loop.time() < give_up:
            busy = mine.busy
            # Who has just had a reply asks for the next thing in the turn after that.
            quiet = 0 if busy else quiet + 1
            await asyncio.sleep(0.001 if busy else 0)

    async def _call(self, call: Call, sent: tuple[Mux, asyncio.Future[Any]] | None = None) -> Any:
        if sent is None:
            call.via = mux = await (await self._connections()).calls(call.until)
            await self._room(mux, call.until)
            sent = mux, mux.call(call)
        mux, future = sent
        mux, (reply,) = await self._replies([call], mux, [future], call.until)
        if type(reply) is ReplyError:
            return await self._error_reply(call, mux, reply)
        return reply

    def _ask_at_once(self, call: Call) -> asyncio.Future[Any] | None:
        """Send a call for which there is nothing to wait but its reply; else ``None``."""
        if not fork.same[0]:
            fork.start_anew()
        recent = self._recent
        if recent is None or call.until is not None or call.compensating:
            return None
        mux = recent.mux
        if mux is None or not mux.ready or mux.loop is not asyncio.get_running_loop():
            return None
        call.via = mux
        return mux.call(call)

    async def _error_reply(self, call: Call, mux: Mux, error: ReplyError) -> Any:
        """Send a call again whose script the server has forgotten; raise what else is wrong."""
        reply: Any = error
        await self._prove_order(mux, call.until)
        if wire.is_noscript(error):
            sent = [mux.call(call, source=True)]
            mux, (reply,) = await self._replies([call], mux, sent, call.until)
            if type(reply) is ReplyError:
                await self._prove_order(mux, call.until)
        if type(reply) is ReplyError:
            self._if_demoted(mux, [reply])
            raise wire.reply_error(str(reply), call)
        return reply

    async def _prove_order(self, mux: Mux, until: float | None) -> None:
        """Make sure that the errors that this connection answered were for what was asked.

        :raises LockUnavailable: they were not.
        """
        echo = mux.ask(*wire.echo())
        echo.add_done_callback(_seen)
        left_s = None if until is None else max(LAST_WORD_S, until - self.clock())
        done, _ = await asyncio.wait({echo}, timeout=left_s)
        if not done:
            raise self._time_is_over()
        echo.result()

    async def _replies(
        self,
        calls: list[Call],
        mux: Mux,
        sent: list[asyncio.Future[Any]],
        until: float | None,
    ) -> tuple[Mux, list[Any]]:
        """The replies to calls that were sent in this order, and the connection they came by."""
        timer = None
        try:
            if until is not None:
                left_s = max(LAST_WORD_S, until - self.clock())
                most_s = min(left_s, wire.silence_s(min(left_s, self.endpoint.reply_s)))
                timer = mux.loop.call_later(most_s, mux.silent, sent[-1])
            await sent[-1]  # the last to come
            return mux, [_later(future).result() for future in sent]
        except Silence:
            return await self.ask_again(calls, mux, [_later(future) for future in sent], until)
        finally:
            if timer is not None:
                timer.cancel()
            _done_with(sent)

    async def ask_again(
        self,
        calls: list[Call],
        mux: Mux,
        late: list[asyncio.Future[Any]],
        until: float | None,
    ) -> tuple[Mux, list[Any]]:
        """The connection is silent, and may be dead without a word: send the calls on another one,
        too. Returns the connection that answers first, with its replies; the other one is closed.

        :param late: what gets the replies of the silent one, if they come all the same.
        :raises LockUnavailable: neither answered in time.
        """
        now = self.clock()
        end = now + mux.left_s(late[-1]) if until is None else until
        if end - now <= wire.LEAST_S:
            raise self._time_is_over()
        for call in calls:
            call.doubled, call.via = True, None
        connections = await self._connections()
        ways, every = [(mux, late)], [*late]
        try:
            with suppress(LockError):  # then there is the silent one still
                beside = await connections.beside(mux, min(end, now + wire.silence_s(end - now)))
                ways.append((beside, [beside.call(call, source=call.lazy) for call in calls]))
                every += ways[-1][1]
            while ways:
                lasts = {sent[-1] for _, sent in ways}
                left_s = max(wire.LEAST_S, end - self.clock())
                done, _ = await asyncio.wait(
                    lasts, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for way in ways:
                    if way[1][-1] in done:
                        break
                found, sent = way
                error = sent[-1].exception()
                if error is None:
                    connections.answered(found, mux)
                    return found, [_later(future).result() for future in sent]
                ways.remove(way)
                if isinstance(error, Silence):  # this one is silent, too
                    ways.append((found, [_later(future) for future in sent]))
                elif not ways:
                    raise error
            raise self._time_is_over()
        finally:
            _done_with(every)

    def _time_is_over(self) -> LockUnavailable:
        # Its reply still has its place in the order; nobody waits for it any more.
        return wire.lost_reply(TimeoutError("the time was over"), str(self.endpoint))

    def listen_anew(self) -> None:
        """Hear messages by a new connection from now on: the old one may be to the wrong server."""
        with suppress(RuntimeError):  # in no loop: nobody listens there
            connections = self._loops.get(asyncio.get_running_loop())
            if connections is not None:
                connections.stop_listening()

    def _if_demoted(self, mux: Mux, replies: list[Any]) -> None:
        if any(map(wire.is_demoted, replies)) and mux.open:
            mux.close()
            self.listen_anew()

    async def _within(self, until: float | None, make: Callable[[], Awaitable[Mux]]) -> Mux:
        """Open a connection, in time."""
        # In a task of its own: redis-py's own wait_for, and one here, would lose a cancellation
        # that comes just when something is done (up to Python 3.11).
        left_s = None if until is None else max(LAST_WORD_S, until - self.clock())
        where = str(self.endpoint)
        task = asyncio.ensure_future(make())
        try:
            done, _ = await asyncio.wait({task}, timeout=left_s)
        except BaseException:
            self._drop(task)
            raise
        if not done:
            self._drop(task)
            raise wire.connect_error(TimeoutError("the time was over"), where)
        try:
            return task.result()
        except LockError as error:
            # Nothing of ours was sent yet, so no outcome is unknown.
            if getattr(error, "outcome_unknown", False):
                raise wire.connect_error(error, where) from error
            raise

    def _drop(self, making: asyncio.Future[Mux]) -> None:
        """Nobody wants this connection any more; if it comes all the same, it is closed."""

        def made(task: asyncio.Future[Mux]) -> None:
            if not task.cancelled() and task.exception() is None:
                task.result().close()

        making.cancel()
        making.add_done_callback(made)

    async def _connect(
        self,
        hear: Callable[[bytes], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> Mux:
        connection = self.endpoint.asyncio_connection()
        where = str(self.endpoint)
        try:
            try:
                await connect_by_address(connection, self.endpoint.reply_s)
            except wire.NO_HANDSHAKE as error:
                raise wire.no_handshake(error) from error
            return Mux(connection, connection.socket_timeout, where, hear=hear, lost=lost)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if not isinstance(error, (*wire.LINE_ERRORS, asyncio.TimeoutError)):
                raise
            raise wire.connect_error(error, where) from error

"""The driver for asyncio: two connections an event loop, one for calls and one for messages."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any

from hiredis import ReplyError

from lualock._core import clock, fork
from lualock._protocol import (
    MIN_REQUEST_S,
    AwaitMessage,
    CleanupLater,
    Connect,
    Effect,
    Pipeline,
    RunScript,
    SendScript,
    ServerClock,
    Steps,
    Subscribe,
    T,
)
from lualock._transport import codec, errors, sockets
from lualock._transport.asyncio.connection import PipelinedConnection, Silence
from lualock._transport.asyncio.loop import LoopConnections, drop_closed
from lualock._transport.asyncio.posted import SentReply, done_with, later, seen
from lualock._transport.connecting import connect_by_address
from lualock._transport.endpoint import Endpoint
from lualock._transport.threads.background import PATIENCE_S, PAUSE_MAX_S, PAUSE_MIN_S
from lualock.errors import LockError, LockUnavailable

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


class AsyncDriver:
    """Runs protocols in the calling task. Safe to share between tasks, and between loops."""

    blocks: Any
    """The ``with`` blocks on this server: :class:`lualock._core.with_statement.Blocks`."""

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
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopConnections] = (
            weakref.WeakKeyDictionary()
        )
        self._recent: LoopConnections | None = None  # of the loop that asked last
        # Where a loop listens, also when its connections were closed and are made anew: somebody
        # may be waiting meanwhile.
        self._channels: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, bytes] = (
            weakref.WeakKeyDictionary()
        )
        # With their marks, and whether nobody waits for their end.
        self._cleaning: dict[asyncio.Task[Any], tuple[object, bool]] = {}

    def channel(self, loop: asyncio.AbstractEventLoop) -> bytes:
        """The channel of a loop."""
        return self._channels.setdefault(loop, codec.new_channel(self.prefix))

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
                        if (
                            type(step) is RunScript
                            and (sent := self._ask_at_once(step)) is not None
                        ):
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
                            if isinstance(step, Subscribe):
                                listens = asyncio.get_running_loop(), step.token
                            reply = await self._perform(step)
                        step = steps.send(reply)
                except StopIteration as done:
                    result: T = done.value
                    if met is not None:
                        errors.dealt_with(met)
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

    async def _perform(self, step: Effect) -> Any:
        if isinstance(step, RunScript):
            if step.compensating:
                return await self._compensate(step)
            return await (self._post(step) if isinstance(step, SendScript) else self._call(step))
        if isinstance(step, AwaitMessage) and step.token is None:
            await asyncio.sleep(step.seconds)
            return None
        connections = await self._connections()
        if isinstance(step, Pipeline):
            return await self._batch(connections, step)
        if isinstance(step, CleanupLater):
            return connections.cleanup_later(step)
        if isinstance(step, Connect):
            await connections.calls(step.until)
            return None
        if isinstance(step, AwaitMessage):
            assert step.token is not None
            return await connections.wait(step.token, step.seconds)
        return await connections.listen(step)

    async def _post(self, call: SendScript) -> SentReply:
        call.via = mux = await (await self._connections()).calls(call.until)
        await self._room(mux, call.until)
        posted = SentReply(self, call, mux)
        if call.lazy:
            # Its caller goes on at once, and may not let this turn of the loop end in time.
            mux.flush()
        return posted

    async def _room(self, mux: PipelinedConnection, until: float | None) -> None:
        if not mux.ready:
            left_s = None if until is None else max(MIN_REQUEST_S, until - self.clock())
            await mux.room(left_s)

    async def _batch(self, connections: LoopConnections, batch: Pipeline) -> list[Any]:
        calls, until = batch.calls, batch.until
        mux = await connections.calls(until)
        await self._room(mux, until)
        mux, replies = await self._replies(calls, mux, [mux.call(call) for call in calls], until)
        if any(type(reply) is ReplyError for reply in replies):
            await self._prove_order(mux, until)
        again = [at for at, reply in enumerate(replies) if errors.is_noscript(reply)]
        if again:  # one brings the source, and the others behind it find it there
            asked = [mux.call(calls[at], source=at == again[0]) for at in again]
            mux, found = await self._replies([calls[at] for at in again], mux, asked, until)
            for at, reply in zip(again, found, strict=True):
                replies[at] = reply
            if any(type(reply) is ReplyError for reply in found):
                await self._prove_order(mux, until)
        self._if_demoted(mux, replies)
        return [errors.answer(reply, call) for reply, call in zip(replies, calls, strict=True)]

    async def _compensate(self, call: RunScript) -> Any:
        # The caller is being cancelled, perhaps again and again: the clean-up goes on without it.
        over_s = 0.0 if call.until is None else max(0.0, self.clock() - call.until)
        call = replace(call, compensating=False, until=None)
        task = self.clean(call)
        done, _ = await asyncio.wait({task}, timeout=max(0.0, GRACE_S - over_s))
        if not done:
            raise LockUnavailable("the server does not answer; the clean-up goes on")
        return task.result()

    def clean(self, call: RunScript) -> asyncio.Task[Any]:
        """Make a call behind everybody's back, until it is answered."""
        return self.spawn(self._clean(call, self._send_now(call)))

    def cleanup_in_background(self, call: RunScript) -> None:
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
            mux.call(call, source=True).add_done_callback(seen)
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

    def _send_now(self, call: RunScript) -> tuple[PipelinedConnection, asyncio.Future[Any]] | None:
        # Who cancels all tasks there are, as asyncio.run does at its end, cancels the clean-up too,
        # perhaps before it has begun. With the source, where the server may not know the script.
        connections = self._loops.get(asyncio.get_running_loop())
        call.via = mux = None if connections is None else connections.open_now()
        if mux is None:
            return None
        sent = mux.call(call, source=not self._has_cleaned)
        mux.flush()  # an interrupted loop may have no more turn
        sent.add_done_callback(seen)
        return mux, sent

    async def _clean(
        self, call: RunScript, sent: tuple[PipelinedConnection, asyncio.Future[Any]] | None = None
    ) -> Any:
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

    async def _connections(self) -> LoopConnections:
        if not fork.same[0]:
            fork.start_anew()
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            drop_closed(self._loops)
            found = self._loops[loop] = LoopConnections(self, loop)
            found.at_loop_end = self._close_at_loop_end(found)
            await anext(found.at_loop_end)
        self._recent = found
        return found

    async def _close_at_loop_end(self, mine: LoopConnections) -> AsyncGenerator[None, None]:
        # A loop finalises its asynchronous generators before it closes (asyncio.run does), which
        # is the one way to be told: a program that never calls aclose() leaves nothing open.
        try:
            yield
        finally:
            await self._close(mine)

    async def _close(self, mine: LoopConnections) -> None:
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

    async def _let_others_end(self, mine: LoopConnections) -> None:
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

    async def _call(
        self, call: RunScript, sent: tuple[PipelinedConnection, asyncio.Future[Any]] | None = None
    ) -> Any:
        if sent is None:
            call.via = mux = await (await self._connections()).calls(call.until)
            await self._room(mux, call.until)
            sent = mux, mux.call(call)
        mux, future = sent
        mux, (reply,) = await self._replies([call], mux, [future], call.until)
        if type(reply) is ReplyError:
            return await self._error_reply(call, mux, reply)
        return reply

    def _ask_at_once(self, call: RunScript) -> asyncio.Future[Any] | None:
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

    async def _error_reply(
        self, call: RunScript, mux: PipelinedConnection, error: ReplyError
    ) -> Any:
        """Send a call again whose script the server has forgotten; raise what else is wrong."""
        reply: Any = error
        await self._prove_order(mux, call.until)
        if errors.is_noscript(error):
            sent = [mux.call(call, source=True)]
            mux, (reply,) = await self._replies([call], mux, sent, call.until)
            if type(reply) is ReplyError:
                await self._prove_order(mux, call.until)
        if type(reply) is ReplyError:
            self._if_demoted(mux, [reply])
            raise errors.reply_error(str(reply), call)
        return reply

    async def _prove_order(self, mux: PipelinedConnection, until: float | None) -> None:
        """Make sure that the errors that this connection answered were for what was asked.

        :raises LockUnavailable: they were not.
        """
        echo = mux.ask(*codec.echo())
        echo.add_done_callback(seen)
        left_s = None if until is None else max(MIN_REQUEST_S, until - self.clock())
        done, _ = await asyncio.wait({echo}, timeout=left_s)
        if not done:
            raise self._time_is_over()
        echo.result()

    async def _replies(
        self,
        calls: list[RunScript],
        mux: PipelinedConnection,
        sent: list[asyncio.Future[Any]],
        until: float | None,
    ) -> tuple[PipelinedConnection, list[Any]]:
        """The replies to calls that were sent in this order, and the connection they came by."""
        timer = None
        try:
            if until is not None:
                left_s = max(MIN_REQUEST_S, until - self.clock())
                most_s = min(left_s, sockets.silence_s(min(left_s, self.endpoint.reply_s)))
                timer = mux.loop.call_later(most_s, mux.silent, sent[-1])
            await sent[-1]  # the last to come
            return mux, [later(future).result() for future in sent]
        except Silence:
            return await self.ask_again(calls, mux, [later(future) for future in sent], until)
        finally:
            if timer is not None:
                timer.cancel()
            done_with(sent)

    async def ask_again(
        self,
        calls: list[RunScript],
        mux: PipelinedConnection,
        late: list[asyncio.Future[Any]],
        until: float | None,
    ) -> tuple[PipelinedConnection, list[Any]]:
        """The connection is silent, and may be dead without a word: send the calls on another one,
        too. Returns the connection that answers first, with its replies; the other one is closed.

        :param late: what gets the replies of the silent one, if they come all the same.
        :raises LockUnavailable: neither answered in time.
        """
        now = self.clock()
        end = now + mux.left_s(late[-1]) if until is None else until
        if end - now <= sockets.LEAST_S:
            raise self._time_is_over()
        for call in calls:
            call.doubled, call.via = True, None
        connections = await self._connections()
        ways, every = [(mux, late)], [*late]
        try:
            with suppress(LockError):  # then there is the silent one still
                beside = await connections.beside(mux, min(end, now + sockets.silence_s(end - now)))
                ways.append((beside, [beside.call(call, source=call.lazy) for call in calls]))
                every += ways[-1][1]
            while ways:
                lasts = {sent[-1] for _, sent in ways}
                left_s = max(sockets.LEAST_S, end - self.clock())
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
                    return found, [later(future).result() for future in sent]
                ways.remove(way)
                if isinstance(error, Silence):  # this one is silent, too
                    ways.append((found, [later(future) for future in sent]))
                elif not ways:
                    raise error
            raise self._time_is_over()
        finally:
            done_with(every)

    def _time_is_over(self) -> LockUnavailable:
        # Its reply still has its place in the order; nobody waits for it any more.
        return errors.lost_reply(TimeoutError("the time was over"), str(self.endpoint))

    def listen_anew(self) -> None:
        """Hear messages by a new connection from now on: the old one may be to the wrong server."""
        with suppress(RuntimeError):  # in no loop: nobody listens there
            connections = self._loops.get(asyncio.get_running_loop())
            if connections is not None:
                connections.stop_listening()

    def _if_demoted(self, mux: PipelinedConnection, replies: list[Any]) -> None:
        if any(map(errors.is_demoted, replies)) and mux.open:
            mux.close()
            self.listen_anew()

    async def _within(
        self, until: float | None, make: Callable[[], Awaitable[PipelinedConnection]]
    ) -> PipelinedConnection:
        """Open a connection, in time."""
        # In a task of its own: redis-py's own wait_for, and one here, would lose a cancellation
        # that comes just when something is done (up to Python 3.11).
        left_s = None if until is None else max(MIN_REQUEST_S, until - self.clock())
        where = str(self.endpoint)
        task = asyncio.ensure_future(make())
        try:
            done, _ = await asyncio.wait({task}, timeout=left_s)
        except BaseException:
            self._drop(task)
            raise
        if not done:
            self._drop(task)
            raise errors.connect_error(TimeoutError("the time was over"), where)
        try:
            return task.result()
        except LockError as error:
            # Nothing of ours was sent yet, so no outcome is unknown.
            if getattr(error, "outcome_unknown", False):
                raise errors.connect_error(error, where) from error
            raise

    def _drop(self, making: asyncio.Future[PipelinedConnection]) -> None:
        """Nobody wants this connection any more; if it comes all the same, it is closed."""

        def made(task: asyncio.Future[PipelinedConnection]) -> None:
            if not task.cancelled() and task.exception() is None:
                task.result().close()

        making.cancel()
        making.add_done_callback(made)

    async def _connect(
        self,
        hear: Callable[[bytes], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> PipelinedConnection:
        connection = self.endpoint.asyncio_connection()
        where = str(self.endpoint)
        try:
            try:
                await connect_by_address(connection, self.endpoint.reply_s)
            except errors.NO_HANDSHAKE as error:
                raise errors.no_handshake(error) from error
            return PipelinedConnection(
                connection, connection.socket_timeout, where, hear=hear, lost=lost
            )
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if not isinstance(error, (*errors.LINE_ERRORS, asyncio.TimeoutError)):
                raise
            raise errors.connect_error(error, where) from error

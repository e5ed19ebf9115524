"""The driver for asyncio: two connections per event loop, one for calls and one for messages."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any

from hiredis import ReplyError

from lualock._core import clock, fork
from lualock._protocol import (
    MIN_REQUEST_S,
    AwaitMessage,
    CleanupLater,
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
from lualock._transport.asyncio.background import BackgroundCleanup, Sent
from lualock._transport.asyncio.connection import PipelinedConnection
from lualock._transport.asyncio.futures import ReplyOverdue, consume_exception, discard, latest
from lualock._transport.asyncio.hedging import hedge
from lualock._transport.asyncio.loop import LoopConnections, drop_closed, running_loop
from lualock._transport.asyncio.pending import SentReply
from lualock._transport.endpoint import Endpoint
from lualock._transport.threads.background import GRACE_S
from lualock.errors import LockUnavailable


class AsyncDriver:
    """Run protocols in the calling task. Safe to share between tasks, and between loops."""

    blocks: Any
    """The ``with`` blocks on this server: :class:`lualock._core.with_statement.Blocks`."""

    def __init__(self, endpoint: Endpoint, prefix: bytes) -> None:
        self.endpoint = endpoint
        self.prefix = prefix
        self.clock = clock.now
        self.server_clock = ServerClock(self.clock, endpoint.reply_s)
        self.server_checked = False
        self.background = BackgroundCleanup(self.clock)
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """Forget the parent's loops and sockets."""
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopConnections] = (
            weakref.WeakKeyDictionary()
        )
        self._recent: LoopConnections | None = None  # of the loop that sent a request last
        # A loop keeps its channel when its connections are closed and opened again: a task may be
        # waiting meanwhile.
        self._channels: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, bytes] = (
            weakref.WeakKeyDictionary()
        )

    # Run a protocol.

    async def run(self, steps: Steps[T]) -> T:
        """Carry out the protocol to its end, and return or raise what it does."""
        subscribed: tuple[asyncio.AbstractEventLoop, bytes] | None = None
        error: BaseException | None = None
        handled: list[BaseException] | None = None
        try:
            while True:
                try:
                    step = steps.send(None) if error is None else steps.throw(error)
                    error = None
                    while True:
                        if type(step) is RunScript and (sent := self._try_send(step)) is not None:
                            # The usual case, without the coroutines that other steps need.
                            connection = step.via
                            try:
                                reply = await sent
                            except ReplyOverdue as overdue:
                                late = [overdue.reply]
                                connection, (reply,) = await hedge(
                                    self, [step], connection, late, None
                                )
                            if type(reply) is ReplyError:
                                reply = await self._handle_error(step, connection, reply)
                        else:
                            if isinstance(step, Subscribe):
                                subscribed = asyncio.get_running_loop(), step.token
                            reply = await self._perform(step)
                        step = steps.send(reply)
                except StopIteration as done:
                    result: T = done.value
                    if handled is not None:
                        errors.drop_tracebacks(handled)
                    return result
                except BaseException as raised:
                    # An error of the protocol itself ends it; the protocol handles any other.
                    if getgeneratorstate(steps) == GEN_CLOSED or isinstance(raised, GeneratorExit):
                        raise
                    error = raised
                    handled = [*(handled or ()), raised]
        finally:
            error = handled = None  # or they and this frame would keep each other alive
            if subscribed is not None:
                loop, token = subscribed  # a closed loop only destroys this coroutine
                if (connections := self._loops.get(loop)) is not None:
                    connections.subscriber.forget(token)

    def _try_send(self, call: RunScript) -> asyncio.Future[Any] | None:
        """Send a call that needs to wait only for its reply; ``None`` if it needs more."""
        if not fork.same[0]:
            fork.start_anew()
        recent = self._recent
        if recent is None or call.until is not None or call.compensating:
            return None
        connection = recent.connection
        if (
            connection is None
            or not connection.ready
            or connection.loop is not asyncio.get_running_loop()
        ):
            return None
        call.via = connection
        if call.script.deadline_at is not None:
            self.server_clock.stamp(call)
        return connection.call(call)

    async def _perform(self, step: Effect) -> Any:
        if isinstance(step, RunScript):
            if step.compensating:
                return await self._compensate(step)
            return await (self._send(step) if isinstance(step, SendScript) else self._call(step))
        if isinstance(step, AwaitMessage) and step.token is None:
            await asyncio.sleep(step.seconds)
            return None
        connections = await self.connections()
        if isinstance(step, Pipeline):
            return await self._pipeline(connections, step)
        if isinstance(step, CleanupLater):
            return connections.cleanup_later(step)
        if isinstance(step, AwaitMessage):
            assert step.token is not None
            return await connections.subscriber.wait(step.token, step.seconds)
        return await connections.subscriber.listen(step)

    # Make a call.

    async def _call(self, call: RunScript, sent: Sent | None = None) -> Any:
        if sent is None:
            call.via = connection = await (await self.connections()).calls(call.until)
            await self._wait_writable(connection, call.until)
            if call.script.deadline_at is not None:
                self.server_clock.stamp(call)
            sent = connection, connection.call(call)
        connection, future = sent
        connection, (reply,) = await self._receive([call], connection, [future], call.until)
        if type(reply) is ReplyError:
            return await self._handle_error(call, connection, reply)
        return reply

    async def _handle_error(
        self, call: RunScript, connection: PipelinedConnection, error: ReplyError
    ) -> Any:
        """Send the call again if the server has forgotten its script; raise any other error."""
        reply: Any = error
        await self._check_order(connection, call.until)
        if errors.is_noscript(error):
            sent = [connection.call(call, source=True)]
            connection, (reply,) = await self._receive([call], connection, sent, call.until)
            if type(reply) is ReplyError:
                await self._check_order(connection, call.until)
        if type(reply) is ReplyError:
            self._leave_if_demoted(connection, [reply])
            raise errors.reply_error(str(reply), call)
        return reply

    async def _send(self, call: SendScript) -> SentReply:
        call.via = connection = await (await self.connections()).calls(call.until)
        await self._wait_writable(connection, call.until)
        if call.script.deadline_at is not None:
            self.server_clock.stamp(call)
        reply = SentReply(self, call, connection)
        if call.lazy:
            # Its caller goes on at once, and may not let this turn of the loop end in time.
            connection.flush()
        return reply

    async def _compensate(self, call: RunScript) -> Any:
        # The caller is being cancelled, perhaps repeatedly: the clean-up goes on without it.
        overtime_s = 0.0 if call.until is None else max(0.0, self.clock() - call.until)
        call = replace(call, compensating=False, until=None)
        task = self.clean(call)
        done, _ = await asyncio.wait({task}, timeout=max(0.0, GRACE_S - overtime_s))
        if not done:
            raise LockUnavailable(
                "could not clean up in time: the server does not answer. The clean-up goes on in "
                "the background"
            )
        return task.result()

    # Make several calls in one round trip.

    async def _pipeline(self, connections: LoopConnections, step: Pipeline) -> list[Any]:
        calls, until = step.calls, step.until
        connection = await connections.calls(until)
        await self._wait_writable(connection, until)
        sent = [connection.call(call) for call in calls]
        connection, replies = await self._receive(calls, connection, sent, until)
        if any(type(reply) is ReplyError for reply in replies):
            await self._check_order(connection, until)
        again = [at for at, reply in enumerate(replies) if errors.is_noscript(reply)]
        if again:  # the first one brings the source, which the server then knows
            sent = [connection.call(calls[at], source=at == again[0]) for at in again]
            connection, found = await self._receive(
                [calls[at] for at in again], connection, sent, until
            )
            for at, reply in zip(again, found, strict=True):
                replies[at] = reply
            if any(type(reply) is ReplyError for reply in found):
                await self._check_order(connection, until)
        self._leave_if_demoted(connection, replies)
        return [
            errors.reply_or_error(reply, call) for reply, call in zip(replies, calls, strict=True)
        ]

    # Receive replies.

    async def _receive(
        self,
        calls: list[RunScript],
        connection: PipelinedConnection,
        sent: list[asyncio.Future[Any]],
        until: float | None,
    ) -> tuple[PipelinedConnection, list[Any]]:
        """Wait for the replies to calls that were sent in this order. Returns the connection that
        answered, and its replies."""
        timer = None
        try:
            if until is not None:
                left_s = max(MIN_REQUEST_S, until - self.clock())
                silence_s = min(left_s, sockets.silence_s(min(left_s, self.endpoint.reply_s)))
                timer = connection.loop.call_later(silence_s, connection.mark_overdue, sent[-1])
            await sent[-1]  # the last to come
            return connection, [latest(future).result() for future in sent]
        except ReplyOverdue:
            return await hedge(self, calls, connection, [latest(future) for future in sent], until)
        finally:
            if timer is not None:
                timer.cancel()
            discard(sent)

    async def _check_order(self, connection: PipelinedConnection, until: float | None) -> None:
        """Check that the errors on this connection answer our calls: an error has no proof.

        :raises LockUnavailable: they do not.
        """
        echo = connection.ask(*codec.echo())
        echo.add_done_callback(consume_exception)
        left_s = None if until is None else max(MIN_REQUEST_S, until - self.clock())
        done, _ = await asyncio.wait({echo}, timeout=left_s)
        if not done:
            raise errors.late_reply_error(str(self.endpoint))
        echo.result()

    async def _wait_writable(self, connection: PipelinedConnection, until: float | None) -> None:
        if not connection.ready:
            left_s = None if until is None else max(MIN_REQUEST_S, until - self.clock())
            await connection.wait_writable(left_s)

    # Work in the background.

    def repeat(self, call: RunScript) -> asyncio.Task[Any] | None:
        """Make a call again whose connection broke; ``None``: the connections were closed."""
        if asyncio.get_running_loop() not in self._loops:
            return None
        return self.background.spawn(self._call(replace(call, until=None)))

    def clean(self, call: RunScript) -> asyncio.Task[Any]:
        """Make a call in the background until it is answered."""
        connections = self._loops.get(asyncio.get_running_loop())
        connection = None if connections is None else connections.open_now()
        return self.background.clean(call, self._call, connection)

    def cleanup_in_background(self, call: RunScript) -> None:
        """Make a call that cleans up, from any thread and with or without a running loop."""
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
        elif (connection := recent.open_now()) is not None:
            # The loop was interrupted and may never run again: send what can be sent.
            connection.call(call, source=True).add_done_callback(consume_exception)
            connection.flush()

    # Connect and close.

    async def connections(self) -> LoopConnections:
        """Return the running loop's connections."""
        if not fork.same[0]:
            fork.start_anew()
        loop = running_loop()
        found = self._loops.get(loop)
        if found is None:
            drop_closed(self._loops)
            found = self._loops[loop] = LoopConnections(self, loop)
            await found.begin()
        self._recent = found
        return found

    def uses(self, connections: LoopConnections) -> bool:
        """Return whether these are still the connections of their loop."""
        return self._loops.get(connections.loop) is connections

    def drop(self, connections: LoopConnections) -> None:
        """Forget these connections, which are being closed."""
        del self._loops[connections.loop]
        if self._recent is connections:
            self._recent = None

    def channel(self, loop: asyncio.AbstractEventLoop) -> bytes:
        """Return the channel of a loop."""
        return self._channels.setdefault(loop, codec.new_channel(self.prefix))

    def resubscribe(self) -> None:
        """Receive messages by a new connection from now on: the server of the old one may be the
        wrong one."""
        with suppress(RuntimeError):  # in no loop: no task subscribed there
            connections = self._loops.get(asyncio.get_running_loop())
            if connections is not None:
                connections.subscriber.close()

    def _leave_if_demoted(self, connection: PipelinedConnection, replies: list[Any]) -> None:
        if any(map(errors.is_demoted, replies)) and connection.open:
            connection.close()
            self.resubscribe()

    async def begin(self) -> bool:
        """Prepare to be notified of this loop's end, without connecting. Returns false if the loop
        is already ending."""
        if getattr(asyncio.get_running_loop(), "_asyncgens_shutdown_called", False):
            return False  # asyncio would complain of a generator that begins now
        await self.connections()
        return True

    def on_loop_end(self, callback: Callable[[], None]) -> None:
        """Call this when the running loop's connections are about to be closed."""
        if connections := self._loops.get(asyncio.get_running_loop()):
            connections.on_end(callback)

    async def aclose(self) -> None:
        """Close this loop's connections, after the background tasks have finished."""
        loop = asyncio.get_running_loop()
        await self.background.finish(loop)
        if (connections := self._loops.get(loop)) is not None:
            await connections.aclose()

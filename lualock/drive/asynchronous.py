"""The driver for asyncio: at most a few dozen connections an event loop, one a call."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from hiredis import ProtocolError, ReplyError
from redis.exceptions import RedisError

from lualock import clock, fork
from lualock.drive import wire
from lualock.drive.endpoint import Endpoint
from lualock.protocol import Call, Step, Steps, T

MAX_CONNECTIONS = 32


LINE_ERRORS = (RedisError, OSError, ProtocolError, asyncio.TimeoutError)


class _Line:
    """A connection that redis-py opened, and that we talk on: one question, one reply."""

    __slots__ = ("_connection", "_reader", "_replies", "_timeout_s", "_writer")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._reader: asyncio.StreamReader = connection._reader
        self._writer: asyncio.StreamWriter = connection._writer
        self._timeout_s: float = connection.socket_timeout
        self._replies = wire.Replies()

    async def ask(self, question: bytes) -> Any:
        self._writer.write(question)
        try:
            return await asyncio.wait_for(self._reply(), self._timeout_s)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no reply within {self._timeout_s:g} s") from None

    async def _reply(self) -> Any:
        while True:
            received = await self._reader.read(65536)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._replies.feed(received)
            reply = self._replies.next()
            if reply is not wire.MORE:
                return reply

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)


class _LoopConnections:
    """What one event loop has: idle connections, and places for those in use."""

    def __init__(self) -> None:
        self.idle: deque[_Line] = deque()
        self.places = asyncio.Semaphore(MAX_CONNECTIONS)
        self.at_loop_end: AsyncGenerator[None, None] | None = None

    async def close(self) -> None:
        while self.idle:
            await self.idle.pop().close()


class AsyncDriver:
    """Runs protocols in the calling task. Safe to share between tasks, and between loops."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.clock = clock.now
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopConnections] = (
            weakref.WeakKeyDictionary()
        )
        self._server_checked = False
        self._cleaning: set[asyncio.Task[Any]] = set()
        fork.tell(self)

    async def run(self, steps: Steps[T]) -> T:
        """Carry the protocol out to its end, and return or raise what it does."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._perform(step)
                except GeneratorExit:
                    raise
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result

    async def aclose(self) -> None:
        """Close this loop's idle connections, once what still cleans up has finished."""
        if self._cleaning:
            await asyncio.wait(self._cleaning)
        connections = self._loops.get(asyncio.get_running_loop())
        if connections is not None and connections.at_loop_end is not None:
            await connections.at_loop_end.aclose()

    async def _perform(self, step: Step) -> Any:
        if not isinstance(step, Call):
            await asyncio.sleep(step.seconds)
            return None
        if not step.compensating:
            return await self._call(step)
        # The caller is being cancelled, perhaps again and again: the clean-up goes on without it.
        task = asyncio.ensure_future(self._call(step))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaned)
        return await asyncio.shield(task)

    def _cleaned(self, task: asyncio.Task[Any]) -> None:
        self._cleaning.discard(task)
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not report it a second time

    async def _connections(self) -> _LoopConnections:
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = _LoopConnections()
            found.at_loop_end = self._close_at_loop_end(loop)
            await anext(found.at_loop_end)
        return found

    async def _close_at_loop_end(
        self, loop: asyncio.AbstractEventLoop
    ) -> AsyncGenerator[None, None]:
        # A loop finalises its asynchronous generators before it closes (asyncio.run does), which
        # is the one way to be told: a program that never calls aclose() leaves nothing open.
        try:
            yield
        finally:
            if connections := self._loops.pop(loop, None):
                await connections.close()

    async def _call(self, call: Call) -> Any:
        connections = await self._connections()
        async with connections.places:
            line = connections.idle.pop() if connections.idle else await self._open()
            try:
                reply = await line.ask(wire.pack(call))
                if wire.is_noscript(reply):
                    reply = await line.ask(wire.pack(call, source=True))
            except BaseException as error:
                await line.close()
                if not isinstance(error, LINE_ERRORS):
                    raise
                # The others probably went the same way; the next try must not meet a dead one.
                await connections.close()
                raise wire.lost_reply(error, str(self.endpoint)) from error
            connections.idle.append(line)
        if isinstance(reply, ReplyError):
            raise wire.reply_error(str(reply), call.key)
        return reply

    async def _open(self) -> _Line:
        connection = self.endpoint.asyncio_connection()
        try:
            await connection.connect()
            line = _Line(connection)
            if not self._server_checked:
                wire.check_hello(await line.ask(wire.HELLO))
                self._server_checked = True
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if not isinstance(error, LINE_ERRORS):
                raise
            raise wire.connect_error(error, str(self.endpoint)) from error
        return line

    def after_fork(self) -> None:
        # Loops and sockets are the parent's: the child starts with none.
        self._loops = weakref.WeakKeyDictionary()
        self._cleaning = set()

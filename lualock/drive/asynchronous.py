"""The driver for asyncio: at most a few dozen connections an event loop, one a call."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from typing import Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from lualock import clock
from lualock.drive import wire
from lualock.drive.endpoint import Endpoint
from lualock.protocol import Call, Step, Steps, T

MAX_CONNECTIONS = 32


class _LoopConnections:
    """What one event loop has: idle connections, and places for those in use."""

    def __init__(self) -> None:
        self.idle: deque[Any] = deque()
        self.places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def close(self) -> None:
        while self.idle:
            await self.idle.pop().disconnect(nowait=True)


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
        _drivers.add(self)

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
        if connections := self._loops.pop(asyncio.get_running_loop(), None):
            await connections.close()

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

    def _connections(self) -> _LoopConnections:
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = _LoopConnections()
        return found

    async def _call(self, call: Call) -> Any:
        connections = self._connections()
        async with connections.places:
            connection = connections.idle.pop() if connections.idle else await self._open()
            try:
                try:
                    await connection.send_packed_command([wire.pack(call)], check_health=False)
                    reply = await connection.read_response(disable_decoding=True)
                except NoScriptError:
                    await connection.send_packed_command(
                        [wire.pack(call, source=True)], check_health=False
                    )
                    reply = await connection.read_response(disable_decoding=True)
            except ResponseError as error:
                connections.idle.append(connection)  # it answered, so it is in step
                raise wire.reply_error(error) from error
            except BaseException as error:
                await connection.disconnect(nowait=True)
                if not isinstance(error, RedisError | OSError | asyncio.TimeoutError):
                    raise
                # The others probably went the same way; the next try must not meet a dead one.
                await connections.close()
                raise wire.lost_reply(error, str(self.endpoint)) from error
            connections.idle.append(connection)
            return reply

    async def _open(self) -> Any:
        connection = self.endpoint.asyncio_connection()
        try:
            await connection.connect()
            if not self._server_checked:
                await connection.send_command("HELLO", check_health=False)
                wire.check_hello(await connection.read_response(disable_decoding=True))
                self._server_checked = True
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if not isinstance(error, RedisError | OSError | asyncio.TimeoutError):
                raise
            raise wire.connect_error(error, str(self.endpoint)) from error
        return connection

    def _after_fork(self) -> None:
        # Loops and sockets are the parent's: the child starts with none.
        self._loops = weakref.WeakKeyDictionary()
        self._cleaning = set()


_drivers: weakref.WeakSet[AsyncDriver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for driver in list(_drivers):
        driver._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

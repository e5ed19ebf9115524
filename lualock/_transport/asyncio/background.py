"""Background tasks: clean-up that callers could not finish in time, and tasks like it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from lualock._core import fork
from lualock._protocol import Clock, RunScript, T
from lualock._transport.asyncio.connection import PipelinedConnection
from lualock._transport.asyncio.futures import consume_exception
from lualock._transport.threads.background import PATIENCE_S, PAUSE_MAX_S, PAUSE_MIN_S
from lualock.errors import LockUnavailable

CLOSING_S = 1.0
"""How long closing waits for background tasks before it cancels them."""

Sent = tuple[PipelinedConnection, asyncio.Future[Any]]
"""A call that was sent: its connection, and the future of its reply."""

_scope: ContextVar[object] = ContextVar("lualock.scope", default=None)
"""Identifies the background task that this code runs in (a task that it starts inherits it), so
that it does not wait for itself."""


class BackgroundCleanup:
    """The background tasks of all event loops. A task ends with its loop at the latest."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._script_known = False  # the server most probably knows the clean-up script
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """Forget the parent's tasks."""
        # Each with its scope, and whether it is a daemon.
        self._tasks: dict[asyncio.Task[Any], tuple[object, bool]] = {}

    def spawn(self, work: Coroutine[Any, Any, T], *, daemon: bool = False) -> asyncio.Task[T]:
        """Start a background task. :meth:`finish` does not wait for a ``daemon``."""
        scope = object()
        previous = _scope.set(scope)
        try:
            task = asyncio.ensure_future(work)  # it has a copy of the context
        finally:
            _scope.reset(previous)
        self._tasks[task] = scope, daemon
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        consume_exception(task)

    def tasks(
        self, loop: asyncio.AbstractEventLoop, *, daemons: bool = True
    ) -> set[asyncio.Task[Any]]:
        """Return the tasks of a loop, but for the one that this code runs in."""
        mine = _scope.get()  # it may be an on_lost that closes everything
        tasks = self._tasks.copy()  # at once: other threads change it
        return {
            task
            for task, (scope, daemon) in tasks.items()
            if task.get_loop() is loop and scope is not mine and (daemons or not daemon)
        }

    async def finish(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the tasks of a loop, at most :data:`CLOSING_S`; then cancel them."""
        tasks = self.tasks(loop, daemons=False)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSING_S)
            for task in late:
                task.cancel()

    def clean(
        self,
        call: RunScript,
        make: Callable[[RunScript, Sent | None], Coroutine[Any, Any, Any]],
        connection: PipelinedConnection | None,
    ) -> asyncio.Task[Any]:
        """Make a call in the background until it is answered.

        :param make: makes the call, or waits for the reply of one that was sent.
        :param connection: an open connection, to send it at once: a program that cancels all tasks,
            as ``asyncio.run`` does at its end, cancels the clean-up too, perhaps before it begins.
        """
        sent = None
        call.via = connection
        if connection is not None:
            # With its source, where the server may not know the script.
            reply = connection.call(call, source=not self._script_known)
            connection.flush()  # an interrupted loop may have no further turn
            reply.add_done_callback(consume_exception)
            sent = connection, reply
        return self.spawn(self._clean(call, make, sent))

    async def _clean(
        self,
        call: RunScript,
        make: Callable[[RunScript, Sent | None], Coroutine[Any, Any, Any]],
        sent: Sent | None,
    ) -> Any:
        give_up_at = self._clock() + PATIENCE_S
        pause_s = PAUSE_MIN_S
        while True:
            try:
                reply = await make(call, sent)
                self._script_known = True
                return reply
            except LockUnavailable:
                if self._clock() > give_up_at:
                    raise
            sent = None
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

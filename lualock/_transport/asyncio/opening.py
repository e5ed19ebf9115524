"""Open connections of an event loop: in time, and one attempt for all tasks that need it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from lualock._protocol import MIN_REQUEST_S, Clock
from lualock._transport import errors, sockets
from lualock._transport.asyncio.connection import PipelinedConnection
from lualock._transport.connecting import resolve_and_connect
from lualock._transport.endpoint import Endpoint
from lualock.errors import LockError, LockUnavailable


async def connect(
    endpoint: Endpoint,
    on_message: Callable[[bytes], None] | None = None,
    on_lost: Callable[[], None] | None = None,
) -> PipelinedConnection:
    """Open a connection."""
    connection = endpoint.asyncio_connection()
    address = str(endpoint)
    try:
        try:
            await resolve_and_connect(connection, endpoint.reply_s)
        except errors.HANDSHAKE_ERRORS as error:
            raise errors.handshake_error(error) from error
        return PipelinedConnection(
            connection, connection.socket_timeout, address, on_message=on_message, on_lost=on_lost
        )
    except BaseException as error:
        await connection.disconnect(nowait=True)
        if not isinstance(error, (*errors.CONNECTION_ERRORS, asyncio.TimeoutError)):
            raise
        raise errors.connect_error(error, address) from error


class Opening:
    """Share one attempt to open a connection between the tasks that need it."""

    def __init__(self, endpoint: Endpoint, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._loop = loop
        # While a task opens the connection: done when the attempt has ended, and whether it is the
        # second attempt, beside one that takes long. The result is the error of an attempt that had
        # all its time: it counts for the tasks that waited, too.
        self._attempt: tuple[asyncio.Future[str | None], bool] | None = None

    @property
    def running(self) -> bool:
        """Whether a task opens the connection now."""
        return self._attempt is not None

    @contextmanager
    def attempt(self, until: float | None) -> Iterator[None]:
        """Mark the body as the attempt that other tasks wait for."""
        ended: asyncio.Future[str | None] = self._loop.create_future()
        self._attempt = ended, self._attempt is not None
        why, made = None, False
        try:
            yield
            made = True
        except LockUnavailable as error:
            if until is None and type(error) is LockUnavailable:
                why = str(error)
            raise
        finally:
            last = ended if self._attempt is None else self._attempt[0]
            for each in {ended, last} if made else {ended}:
                if not each.done():
                    each.set_result(why)
            if last is ended:
                self._attempt = None

    async def wait_for_other(self, until: float | None) -> bool:
        """Wait while another task opens the connection. Returns false if this task must open it.

        An attempt that began while the server was silent may stay silent: after a while one more is
        made beside it.

        :raises LockUnavailable: the attempt failed, or the time is over.
        """
        if self._attempt is None:
            return False
        ended, is_second = self._attempt
        left_s = self._endpoint.reply_s if until is None else until - self._clock()
        silence_s: float | None = sockets.silence_s(left_s)
        if is_second or sockets.silence_s(left_s) >= left_s:
            silence_s = None if until is None else left_s
        done, _ = await asyncio.wait({ended}, timeout=silence_s)
        if done and (why := ended.result()) is not None:
            # If each task tried in turn, the last of a thousand would learn of it after an hour.
            raise LockUnavailable(why)
        if not done and until is not None and self._clock() >= until:
            raise errors.connect_error(TimeoutError("the time is over"), str(self._endpoint))
        return bool(done) or self._attempt is None or self._attempt[0] is not ended

    async def open(
        self, make: Callable[[], Awaitable[PipelinedConnection]], until: float | None
    ) -> PipelinedConnection:
        """Open a connection with ``make``, in time."""
        # In a task of its own: redis-py's own wait_for, and one here, would lose a cancellation
        # that comes just when something is done (up to Python 3.11).
        left_s = None if until is None else max(MIN_REQUEST_S, until - self._clock())
        task = asyncio.ensure_future(make())
        try:
            done, _ = await asyncio.wait({task}, timeout=left_s)
        except BaseException:
            _close_when_opened(task)
            raise
        if not done:
            _close_when_opened(task)
            raise errors.connect_error(TimeoutError("the time is over"), str(self._endpoint))
        try:
            return task.result()
        except LockError as error:
            # No request of ours was sent yet, so no outcome is unknown.
            if getattr(error, "outcome_unknown", False):
                raise errors.connect_error(error, str(self._endpoint)) from error
            raise


def keep_one(
    opened: PipelinedConnection, current: PipelinedConnection | None, *, stopped: bool
) -> PipelinedConnection:
    """Return the connection to use, the new one or one that another task opened meanwhile; close
    the new one if it is not needed. ``stopped``: all were closed meanwhile, and nothing would close
    the new one later."""
    if current is not None and current.open:
        opened.close()
        return current
    if stopped:
        opened.close()
    return opened


def _close_when_opened(task: asyncio.Future[PipelinedConnection]) -> None:
    """Cancel an attempt; close the connection if it opens all the same."""

    def opened(task: asyncio.Future[PipelinedConnection]) -> None:
        if not task.cancelled() and task.exception() is None:
            task.result().close()

    task.cancel()
    task.add_done_callback(opened)

"""Replies without a waiter: to a call that was sent without waiting, or overdue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from hiredis import ReplyError

from lualock._protocol import SendScript
from lualock._transport import errors
from lualock._transport.asyncio.connection import PipelinedConnection, ReplyOverdue
from lualock.errors import LockUnavailable

if TYPE_CHECKING:
    from lualock._transport.asyncio.driver import AsyncDriver


class SentReply:
    """The reply to a call that was sent without waiting, as a ``PendingReply`` of the protocol."""

    def __init__(
        self, driver: AsyncDriver, call: SendScript, connection: PipelinedConnection
    ) -> None:
        self._driver = driver
        self._call = call
        self._connection = connection
        self._repeated = not call.lazy  # a waiter repeats its check, but no caller repeats a claim
        self._follow(connection.call(call, source=call.lazy))

    def _follow(self, future: asyncio.Future[Any]) -> None:
        self._future = future
        future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()  # also keeps asyncio from reporting it
        if isinstance(error, ReplyOverdue) and self._call.lazy:
            hedged = self._driver.hedge([self._call], self._connection, [error.reply], None)
            self._follow(self._driver.background.spawn(_only(hedged)))
        elif isinstance(error, LockUnavailable) and not self._repeated:
            self._repeated = True
            if (again := self._driver.repeat(self._call)) is not None:
                self._follow(again)
        elif isinstance(error, ReplyOverdue):
            self._follow(error.reply)
        elif error is None and errors.is_noscript(future.result()) and not self._call.moot:
            self._follow(self._connection.call(self._call, source=True))

    def poll(self) -> Any:
        """Return the reply, ``None`` while it has not come, or an error. Never waits."""
        if not self._future.done():
            return None
        if self._future.cancelled():
            closed = ConnectionError("the connections were closed")
            return errors.lost_reply_error(closed, str(self._driver.endpoint))
        if (error := self._future.exception()) is not None:
            repeats = isinstance(error, LockUnavailable) and not self._repeated
            return None if repeats or isinstance(error, ReplyOverdue) else error
        reply = self._future.result()
        if isinstance(reply, ReplyError):
            if errors.is_noscript(reply):
                return None  # it is being sent again
            return errors.reply_error(str(reply), self._call)
        return reply


def consume_exception(future: asyncio.Future[Any]) -> None:
    """Retrieve the exception, so that asyncio does not report it as never retrieved."""
    if not future.cancelled():
        future.exception()


def latest(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """Return the future that gets the reply, also if it became overdue."""
    while future.done() and not future.cancelled() and isinstance(future.exception(), ReplyOverdue):
        future = cast(ReplyOverdue, future.exception()).reply
    return future


def discard(futures: list[asyncio.Future[Any]]) -> None:
    """Stop waiting for these replies."""
    for future in map(latest, futures):
        if not future.cancel():
            consume_exception(future)


async def _only(hedged: Awaitable[tuple[PipelinedConnection, list[Any]]]) -> Any:
    _, (reply,) = await hedged
    return reply

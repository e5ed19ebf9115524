"""The reply to a call that was sent without waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from hiredis import ReplyError

from lualock._protocol import SendScript
from lualock._transport import errors
from lualock._transport.asyncio.connection import PipelinedConnection
from lualock._transport.asyncio.futures import ReplyOverdue
from lualock._transport.asyncio.hedging import hedge
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
            hedged = hedge(self._driver, [self._call], self._connection, [error.reply], None)
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


async def _only(hedged: Awaitable[tuple[PipelinedConnection, list[Any]]]) -> Any:
    _, (reply,) = await hedged
    return reply

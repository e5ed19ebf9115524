"""The reply to a request that was sent without waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from hiredis import ReplyError

from lualock._protocol import SendScript
from lualock._transport import errors
from lualock._transport.asyncio.connection import PipelinedConnection, Silence

if TYPE_CHECKING:
    from lualock._transport.asyncio.driver import AsyncDriver


def seen(future: asyncio.Future[Any]) -> None:
    """Look at it, so that asyncio does not report what nobody asks for."""
    if not future.cancelled():
        future.exception()


class SentReply:
    """The reply to a posted call."""

    def __init__(self, driver: AsyncDriver, call: SendScript, mux: PipelinedConnection) -> None:
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
        elif error is None and errors.is_noscript(future.result()) and not self._call.moot:
            self._watch(self._mux.call(self._call, source=True))

    def poll(self) -> Any:
        """See :class:`lualock._protocol.Pending`."""
        if not self._future.done() or isinstance(self._future.exception(), Silence):
            return None
        reply = self._future.result()
        if isinstance(reply, ReplyError):
            if errors.is_noscript(reply):
                return None  # it is being sent again
            raise errors.reply_error(str(reply), self._call)
        return reply


def later(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """What gets the reply of a question whose silence was told."""
    while future.done() and not future.cancelled() and isinstance(future.exception(), Silence):
        future = cast(Silence, future.exception()).later
    return future


def done_with(futures: list[asyncio.Future[Any]]) -> None:
    """Nobody waits for these replies any more."""
    for future in map(later, futures):
        if not future.cancel():
            seen(future)


async def _only(again: Awaitable[tuple[PipelinedConnection, list[Any]]]) -> Any:
    _, (reply,) = await again
    return reply

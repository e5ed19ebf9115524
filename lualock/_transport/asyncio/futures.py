"""The futures of replies that are overdue, or that no caller waits for."""

from __future__ import annotations

import asyncio
from typing import Any, cast


class ReplyOverdue(Exception):
    """No reply has come for a while. ``reply`` gets it, if it still comes."""

    def __init__(self, reply: asyncio.Future[Any]) -> None:
        super().__init__()
        self.reply = reply


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

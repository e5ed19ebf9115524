"""Send calls again on another connection, where the first one is silent (*hedging*)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lualock._protocol import RunScript
from lualock._transport import errors, sockets
from lualock._transport.asyncio.connection import PipelinedConnection
from lualock._transport.asyncio.futures import ReplyOverdue, discard, latest
from lualock.errors import LockError

if TYPE_CHECKING:
    from lualock._transport.asyncio.driver import AsyncDriver


async def hedge(
    driver: AsyncDriver,
    calls: list[RunScript],
    silent: PipelinedConnection,
    late: list[asyncio.Future[Any]],
    until: float | None,
) -> tuple[PipelinedConnection, list[Any]]:
    """Send the calls on another connection, too: the silent one may be dead (a NAT, a load
    balancer). Returns the connection that answers first, and its replies; closes the other.

    :param late: the futures of the silent connection's replies.
    :raises LockUnavailable: neither answered in time.
    """
    now = driver.clock()
    end = now + silent.left_s(late[-1]) if until is None else until
    if end - now <= sockets.MIN_TIMEOUT_S:
        raise errors.late_reply_error(str(driver.endpoint))
    for call in calls:
        call.doubled, call.via = True, None
    connections = await driver.connections()
    attempts, futures = [(silent, late)], [*late]
    try:
        with suppress(LockError):  # then the silent one is the only one
            other = await connections.other_than(
                silent, min(end, now + sockets.silence_s(end - now))
            )
            attempts.append((other, [other.call(call, source=call.lazy) for call in calls]))
            futures += attempts[-1][1]
        while attempts:
            last_replies = {sent[-1] for _, sent in attempts}
            left_s = max(sockets.MIN_TIMEOUT_S, end - driver.clock())
            done, _ = await asyncio.wait(
                last_replies, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            attempt = next(one for one in attempts if one[1][-1] in done)
            first, sent = attempt
            error = sent[-1].exception()
            if error is None:
                connections.answered(first, silent)
                return first, [latest(future).result() for future in sent]
            attempts.remove(attempt)
            if isinstance(error, ReplyOverdue):  # this one is silent, too
                attempts.append((first, [latest(future) for future in sent]))
            elif not attempts:
                raise error
        raise errors.late_reply_error(str(driver.endpoint))
    finally:
        discard(futures)

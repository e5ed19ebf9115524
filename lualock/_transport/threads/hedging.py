"""Send a request again on a fresh connection, where the first one is silent (*hedging*)."""

from __future__ import annotations

import selectors
from typing import Any

from lualock._protocol import Clock, RunScript
from lualock._transport import codec, errors, sockets
from lualock._transport.threads.connection import Connection
from lualock._transport.threads.pool import ConnectionPool
from lualock.errors import LockError


def hedge(
    pool: ConnectionPool,
    silent: Connection,
    calls: list[RunScript],
    request: bytes,
    proofs: list[bytes],
    replies: list[Any],
    until: float | None,
) -> tuple[Connection, list[Any]]:
    """Send the request on a fresh connection, too: the silent one may be dead (a NAT, a load
    balancer). Returns the connection that answers first, and its replies; closes the other.

    :param replies: those that the silent connection has already.
    :raises errors.ReplyTimeout: neither answered in time.
    """
    now = pool.clock()
    end = now + pool.endpoint.reply_s - silent.timeout_s
    if until is not None:
        end = min(end, until)
    total_s = pool.endpoint.reply_s if until is None else end - now + silent.timeout_s
    if end - now <= sockets.MIN_TIMEOUT_S:
        raise errors.ReplyTimeout(f"no reply within {total_s:.3g} s")
    for call in calls:
        call.doubled, call.via = True, None
    attempts = [(silent, replies)]
    fresh: Connection | None = None
    try:
        try:
            fresh = pool.connect(min(end, now + sockets.silence_s(end - now)))
            fresh.send(request)
            attempts.append((fresh, []))
        except (LockError, *errors.CONNECTION_ERRORS) as error:
            if not isinstance(error, LockError) and not errors.is_broken(error):
                raise
        answered = _first_to_answer(attempts, proofs, end, pool.clock)
        if answered is None:
            raise errors.ReplyTimeout(f"no reply within {total_s:.3g} s")
        first, replies = answered
        if first is not silent:
            first.permit = silent.permit
            silent.close()
            pool.close_idle()  # they are probably dead, too
        elif fresh is not None:
            fresh.close()
        return first, replies
    except BaseException:
        if fresh is not None:
            fresh.close()
        raise


def _first_to_answer(
    attempts: list[tuple[Connection, list[Any]]], proofs: list[bytes], end: float, clock: Clock
) -> tuple[Connection, list[Any]] | None:
    """Wait for the first connection that has all its replies, where all were sent the same.
    Returns it and its replies; ``None``: none has them by ``end``.

    :param attempts: each connection, with the replies that it has already. One that breaks is
        closed.
    """
    with selectors.DefaultSelector() as selector:
        for connection, _ in attempts:
            selector.register(connection.socket, selectors.EVENT_READ)
        while True:
            for connection, replies in list(attempts):
                try:
                    while len(replies) < len(proofs):
                        reply = connection.read(proofs[len(replies)], now=True)
                        if reply is codec.INCOMPLETE:
                            break
                        replies.append(reply)
                    else:
                        return connection, replies
                except errors.CONNECTION_ERRORS as error:
                    if not errors.is_broken(error) or len(attempts) == 1:
                        raise
                    attempts.remove((connection, replies))
                    selector.unregister(connection.socket)
                    connection.close()
            left_s = end - clock()
            if left_s <= 0:
                return None
            selector.select(left_s)

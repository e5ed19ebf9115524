"""End a lease, and keep its lock held under another token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lualock._protocol.abandon import give_back
from lualock._protocol.acquire import undo
from lualock._protocol.adopt import adopt
from lualock._protocol.effects import Steps
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.release import unconfirmed
from lualock._protocol.request import AcquireRequest
from lualock._protocol.server_clock import ServerClock
from lualock.errors import LeaseLost, LockUnavailable


def keep_for(
    request: AcquireRequest,
    parts: Sequence[AcquireRequest],
    server: ServerClock,
    verb: str = "kept",
) -> Steps[None]:
    """End the lease of a request, and give its locks to the token of ``parts``.

    A lock that is not among ``parts`` is released. On an error all are, because no process renews
    them any more.

    :raises LeaseLost: the lease had ended before.
    :raises LockUnavailable: the server did not answer.
    """
    try:
        for part in parts:
            yield from adopt(part, request.token, server, verb, fresh=False)
        kept = {part.key for part in parts}
        for one in request.parts:
            if one.key not in kept:
                yield from give_back(one, b"", None)
    except GeneratorExit:
        raise
    except BaseException:
        for one in (request, *parts):
            yield from undo(one)
        raise


def release_later(
    request: AcquireRequest, state: LeaseState, token: bytes, ttl_ms: int, server: ServerClock
) -> Steps[None]:
    """Release the lock, which stays held for ``ttl_ms`` under a token that no process has.

    :raises LeaseLost: the lease had ended before; nothing was changed.
    :raises LockUnavailable: the server did not answer, or the outcome is unknown.
    """
    parts = [replace(one, token=token, ttl_ms=ttl_ms, state=None) for one in request.parts]
    try:
        yield from keep_for(request, parts, server, "released")
    except GeneratorExit:
        raise
    except LeaseLost:
        state.mark_lost()
        raise
    except LockUnavailable as error:
        state.release_unknown()
        if error.outcome_unknown:
            raise unconfirmed(request) from error
        raise
    except BaseException:
        state.mark_released()
        raise
    state.mark_released()

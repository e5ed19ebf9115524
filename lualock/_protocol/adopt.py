"""Adopt a lease that another process passed on; take a lock by one script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lualock._core.keys import display_name
from lualock._protocol.abandon import give_back, schedule_cleanup
from lualock._protocol.effects import DRIVER_WRITES, Steps
from lualock._protocol.exchange import Exchange
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.replies import lost
from lualock._protocol.request import AcquireRequest, owned
from lualock._protocol.server_clock import ServerClock
from lualock.errors import LockError, LockUnavailable
from lualock.scripts import SCRIPTS, Script

ADOPT = SCRIPTS["adopt"]


def adopt(
    request: AcquireRequest,
    token: bytes,
    server: ServerClock,
    verb: str = "adopted",
    *,
    fresh: bool = True,
) -> Steps[LeaseState]:
    """Take over the lease of ``token``: from then on it belongs to ``request``.

    :param verb: the participle that error messages use, such as "adopted".
    :param fresh: as for :func:`take`.
    :raises LeaseLost: that lease has ended, or was adopted or released before.
    :raises LockUnavailable: the server did not answer. If the outcome is unknown, the lease that
        may have been adopted is released, so that it is not wasted; else its previous holder still
        has it.
    """

    def refusal(reply: Any) -> LockError:
        return lost(request.name, request.key, reply, verb)

    ttl_ms, holder_info = b"%d" % request.ttl_ms, request.holder_info
    parts = request.key, token, request.token, ttl_ms, DRIVER_WRITES, holder_info
    return take(request, server, ADOPT, parts, refusal, final=True, fresh=fresh)


def take(
    request: AcquireRequest,
    server: ServerClock,
    script: Script,
    parts: Sequence[bytes],
    refusal: Callable[[Any], LockError],
    *,
    until: float | None = None,
    final: bool = False,
    fresh: bool = True,
) -> Steps[LeaseState]:
    """Take a lock by one script, which answers as ``acquire`` does if it takes it.

    :param refusal: makes the error for any other reply.
    :param until: when the caller stops waiting; ``None``: no limit.
    :param final: a refusal is final: a copy of the request that arrives later is refused as well.
    :param fresh: the token is used only for this, so whatever else it has can be released.
    """
    exchange = Exchange(server, until)
    try:
        reply = yield from exchange.ask(script, parts)
        if type(reply) is bytes and reply.isdigit():
            deadline = exchange.sent_at + request.ttl_ms / 1000
            request.state = LeaseState(int(reply), reply + request.token, deadline)
        elif reply[0] == b"owned":
            request.state = owned(request, reply, exchange.sent_at)
        else:
            repeated = exchange.orphan is not None
            exchange.in_flight = None
            if final:
                exchange.orphan = None
                if repeated and not fresh:
                    # The first copy may have taken it, and another process with the token (a job's
                    # next delivery) may have taken it over since.
                    raise exchange.unknown or LockUnavailable(
                        f"could not acquire lock {display_name(request.name)!r}: the first reply "
                        "was lost, and the lock is not held under this token any more (it may "
                        "have been acquired, and taken over since). Try again",
                        outcome_unknown=True,
                    )
            raise refusal(reply)
        if exchange.orphan is not None and fresh:
            yield from schedule_cleanup(request, exchange.orphan)
        return request.state
    except GeneratorExit:
        raise
    except BaseException as error:
        request.state = None
        orphan = exchange.in_flight_after(error)
        if orphan is not None:
            yield from give_back(request, b"", orphan)
        raise

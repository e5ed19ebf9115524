"""Adopt a lease that another process passed on; take a lock by one script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lualock._core.keys import display_name
from lualock._protocol.abandon import give_back, schedule_cleanup
from lualock._protocol.effects import Connect, RunScript, Steps
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.replies import lost
from lualock._protocol.request import AcquireRequest, owned
from lualock._protocol.resend import still_unknown
from lualock._protocol.server_clock import LATE_MAX, ServerClock, jumps
from lualock.errors import LockError, LockUnavailable
from lualock.scripts import SCRIPTS

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

    def make(deadline: bytes) -> RunScript:
        return RunScript(
            ADOPT,
            (
                request.key,
                token,
                request.token,
                b"%d" % request.ttl_ms,
                deadline,
                request.holder_info,
            ),
        )

    def refusal(reply: Any) -> LockError:
        return lost(request.name, request.key, reply, verb)

    return take(request, server, make, refusal, final=True, fresh=fresh)


def take(
    request: AcquireRequest,
    server: ServerClock,
    make: Callable[[bytes], RunScript],
    refusal: Callable[[Any], LockError],
    *,
    final: bool = False,
    fresh: bool = True,
) -> Steps[LeaseState]:
    """Take a lock by one script, which answers as ``acquire`` does if it takes it.

    :param make: makes the request from its deadline.
    :param refusal: makes the error for any other reply.
    :param final: a refusal is final: a copy of the request that arrives later is refused as well.
    :param fresh: the token is used only for this, so whatever else it has can be released.
    """
    if not server.known:
        yield Connect()
    step: RunScript | None = None
    orphan: RunScript | None = None  # its reply was lost, and it may still be in flight
    unknown: LockUnavailable | None = None
    try:
        late = 0
        while True:
            sent_at = server.clock()
            expires, deadline = server.usual(sent_at)
            call = make(deadline)
            call.expires = expires
            step = call  # after expires is set: the cleanup waits for that time
            try:
                reply = yield step
            except LockUnavailable as error:
                if unknown is not None:
                    raise still_unknown(unknown, error) from error
                if not error.outcome_unknown:
                    raise
                orphan, unknown = step, error  # once more, on a fresh connection
                continue
            if step.doubled:
                orphan = step
            if type(reply) is bytes and reply.isdigit():
                request.state = LeaseState(
                    int(reply), reply + request.token, sent_at + request.ttl_ms / 1000
                )
            elif reply[0] == b"owned":
                request.state = owned(request, reply, sent_at)
            elif reply[0] == b"late":
                server.compare(sent_at, server.clock(), int(reply[1]))
                late += 1
                if late > LATE_MAX:
                    raise jumps()
                continue
            else:
                doubled, step = step.doubled, None
                if final:
                    orphan = None
                    if (unknown is not None or doubled) and not fresh:
                        # The first copy may have taken it, and another process with the token (a
                        # job's next delivery) may have taken it over since.
                        raise unknown or LockUnavailable(
                            f"could not acquire lock {display_name(request.name)!r}: the first "
                            "reply was lost, and the lock is not held under this token any more "
                            "(it may have been acquired, and taken over since). Try again",
                            outcome_unknown=True,
                        )
                raise refusal(reply)
            if orphan is not None and fresh:
                yield schedule_cleanup(request, orphan)
            return request.state
    except GeneratorExit:
        raise
    except BaseException as error:
        request.state = None
        if isinstance(error, LockError) and not getattr(error, "outcome_unknown", False):
            step = None  # a definite answer to the last request
        if step is not None:
            if orphan is not None:
                step.via = None  # it stands for both requests, whatever their connection
            orphan = step
        if orphan is not None:
            yield from give_back(request, b"", orphan)
        raise

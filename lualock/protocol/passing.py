"""How a lease is passed on: adopt, by whoever was given its handle."""

from __future__ import annotations

from lualock.errors import LockError, LockUnavailable
from lualock.protocol.holding import give_back
from lualock.protocol.replies import lost
from lualock.protocol.server_clock import LATE_MAX, ServerClock, jumps
from lualock.protocol.steps import Call, Reach, Steps
from lualock.protocol.terms import Ask, Grant
from lualock.script import SCRIPTS

ADOPT = SCRIPTS["adopt"]


def adopt(ask: Ask, token: bytes, server: ServerClock) -> Steps[Grant]:
    """Take over the lease of ``token``: from then on it is that of ``ask``.

    :raises LeaseLost: that lease has ended, or was adopted or released before.
    :raises LockUnavailable: the server did not answer. If the outcome is unknown, a lease that may
        be ours is given up, so that nobody has it in vain; if it is not, its owner has it still.
    """
    if not server.known:
        yield Reach()
    ghost: Call | None = None
    failed: LockUnavailable | None = None
    late = 0
    try:
        while True:
            sent = server.clock()
            expires, deadline = server.usual(sent)
            parts = (ask.key, token, ask.token, b"%d" % ask.ttl_ms, deadline, ask.about)
            ghost = step = Call(ADOPT, parts, expires=expires)
            try:
                reply = yield step
            except LockUnavailable as error:
                if failed is not None or not error.outcome_unknown:
                    raise
                failed = error  # once more, on a fresh connection
                continue
            if type(reply) is bytes and reply.isdigit():
                ask.grant = Grant(int(reply), sent + ask.ttl_ms / 1000)
            elif reply[0] == b"owned":
                ask.grant = Grant(int(reply[2]), sent + reply[1] / 1000)
            elif reply[0] == b"late":
                server.compare(sent, server.clock(), int(reply[1]))
                late += 1
                if late > LATE_MAX:
                    raise jumps()
                continue
            else:
                ghost = None  # adopted by nobody any more, however late
                raise lost(ask.name, ask.key, reply, "adopted")
            if failed is not None:
                ghost.via = None  # the first one may be under way still, by another connection
                ask.grant.ghost = ghost
            return ask.grant
    except GeneratorExit:
        raise
    except BaseException as error:
        ask.grant = None
        refused = isinstance(error, LockError) and not getattr(error, "outcome_unknown", False)
        if failed is not None or (ghost is not None and not refused):
            if ghost is not None and failed is not None:
                ghost.via = None
            yield from give_back(ask, b"", ghost)
        raise

"""End the lease of a holder that does not release the lock."""

from __future__ import annotations

from lualock._protocol.effects import DRIVER_WRITES, Steps
from lualock._protocol.exchange import Exchange
from lualock._protocol.inspect import inspect
from lualock._protocol.replies import conflict
from lualock._protocol.request import AcquireRequest
from lualock._protocol.server_clock import ServerClock
from lualock.scripts import SCRIPTS

FORCE_RELEASE = SCRIPTS["force_release"]
ENDED = b"released", b"handed_over", b"already"


def force_release(request: AcquireRequest, fence: int | None, server: ServerClock) -> Steps[bool]:
    """End the lease with this fence, or the lease that has the lock now; return whether it ended.

    The request names the lease by its fence, so a repetition never ends the lease of the next
    holder.

    :raises LockUnavailable: the server did not answer.
    """
    if fence is None:
        fence = (yield from inspect(request.name, request.key, request.queue)).fence
        if fence is None:
            return False
    parts = request.key, request.queue, request.token, b"%016d" % fence, DRIVER_WRITES
    reply = yield from Exchange(server).ask(FORCE_RELEASE, parts)
    if reply in ENDED:
        return True
    if reply == b"missing" or reply[0] == b"held":
        return False
    raise conflict(request.key)

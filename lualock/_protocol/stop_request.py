"""Ask the holder of a lock to stop."""

from __future__ import annotations

from lualock._protocol.effects import DRIVER_WRITES, RunScript, Steps
from lualock._protocol.exchange import Exchange
from lualock._protocol.replies import conflict
from lualock._protocol.request import AcquireRequest
from lualock._protocol.resend import ask_again
from lualock._protocol.server_clock import ServerClock
from lualock.scripts import SCRIPTS

REQUEST_RELEASE = SCRIPTS["request_release"]
RELEASE_REQUESTED = SCRIPTS["release_requested"]
WITHDRAW = SCRIPTS["withdraw"]


def stop_requests_key(lock: bytes) -> bytes:
    """Return the key of the stop requests for a lock's key."""
    return lock + b":stop_requests"


def request_release(request: AcquireRequest, ttl_ms: int, server: ServerClock) -> Steps[bool]:
    """Ask the holder to stop, for as long as ``request`` waits; return whether the lock is held.

    :raises LockUnavailable: the server did not answer.
    """
    keys = request.key, stop_requests_key(request.key)
    parts = *keys, request.token, b"%d" % ttl_ms, DRIVER_WRITES
    reply = yield from Exchange(server).ask(REQUEST_RELEASE, parts)
    if reply != b"free" and reply[0] != b"asked":
        raise conflict(request.key)
    return bool(reply != b"free")


def release_requested(key: bytes, fence: int, token: bytes) -> Steps[bool]:
    """Return whether the release of a lease was requested.

    :raises LockUnavailable: the server did not answer.
    """
    reply = yield from ask_again(
        RunScript(RELEASE_REQUESTED, (stop_requests_key(key), b"%016d" % fence, token))
    )
    if isinstance(reply, list):
        raise conflict(stop_requests_key(key))
    return bool(reply == b"requested")


def withdraw(request: AcquireRequest) -> Steps[bool]:
    """Withdraw a stop request; return false if a later requester waits for the lock.

    :raises LockUnavailable: the server did not answer.
    """
    reply = yield from ask_again(
        RunScript(WITHDRAW, (stop_requests_key(request.key), request.queue, request.token))
    )
    return bool(reply != b"superseded")

"""The protocol of jobs, sans-IO as :mod:`lualock._protocol`: reserve, start, died.

A queued job holds a *reservation*: a lock of its own, separate from the running lock. It is an
ordinary lock, so ``extend``, ``release`` and renewal work on it. The verbs here look at both locks
in one step.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lualock import _protocol as protocol
from lualock._core.keys import waiters_key
from lualock._core.options import split_holder_info
from lualock._protocol import (
    DRIVER_WRITES,
    AcquireRequest,
    LeaseState,
    MultiRequest,
    RunScript,
    ServerClock,
    Steps,
    conflict,
    multi,
    release,
    take,
    undo,
)
from lualock._protocol.replies import Held
from lualock._protocol.resend import ask_again
from lualock.errors import LeaseLost, LockError, NotAcquired
from lualock.scripts import FOLDER, load

SCRIPTS = load(Path(__file__).with_name("scripts"), include_from=FOLDER)
RESERVE = SCRIPTS["reserve"]
START = SCRIPTS["start"]
DIED = SCRIPTS["died"]


class AlreadyHeld(NotAcquired):
    """Another holder has the lock or the reservation; ``metadata`` is what that holder stored."""

    metadata = ""
    running = True
    """Whether it is the running lock that is held, and not only the reservation of a queued job."""


def _already_held(
    request: AcquireRequest, key: bytes, server: ServerClock, reply: Any
) -> LockError:
    if reply[0] not in (b"held", b"queued", b"running"):
        return conflict(key)
    now = server.clock()
    error = Held(reply[1], reply[2], reply[3], now).refusal(request.name, now, AlreadyHeld)
    assert isinstance(error, AlreadyHeld)
    error.metadata = split_holder_info(reply[3])[1]
    error.running = reply[0] != b"queued"
    return error


RESERVATION = b":reservation"
"""What follows a lock's key in the key of its reservation."""


def reservation_key(lock: bytes) -> bytes:
    """Return the key of the reservation that belongs to a lock's key."""
    return lock + RESERVATION


def reserve(request: AcquireRequest, server: ServerClock, *, alone: bool) -> Steps[LeaseState]:
    """Take a reservation.

    :param alone: refuse also while a job runs.
    :raises AlreadyHeld: another job holds the reservation, or a job runs.
    """
    lock = request.key.removesuffix(RESERVATION)
    ttl_ms, refuses_runner = b"%d" % request.ttl_ms, b"1" if alone else b"0"
    arguments = request.token, ttl_ms, DRIVER_WRITES, request.holder_info, refuses_runner
    parts = lock, request.key, *arguments, DRIVER_WRITES

    def refusal(reply: Any) -> LockError:
        return _already_held(request, lock, server, reply)

    return take(request, server, RESERVE, parts, refusal, fresh=False)


def start(request: AcquireRequest, owner: bytes, server: ServerClock) -> Steps[LeaseState]:
    """Take the running lock for a job, and release the reservation with the token ``owner``.

    A job with several locks takes them by one script, and then releases its reservations.

    :raises AlreadyHeld: another holder has a lock; the reservation stays as it is.
    """
    if isinstance(request, MultiRequest):
        return _start_all(request, owner, server)
    reservation, ttl_ms = reservation_key(request.key), b"%d" % request.ttl_ms
    keys = request.key, reservation, request.queue, waiters_key(reservation)
    parts = *keys, request.token, ttl_ms, DRIVER_WRITES, request.holder_info, owner

    def refusal(reply: Any) -> LockError:
        return _already_held(request, request.key, server, reply)

    return take(request, server, START, parts, refusal)


def _start_all(request: MultiRequest, owner: bytes, server: ServerClock) -> Steps[LeaseState]:
    state = yield from multi.acquire_all(
        *(request, server, owner * len(request.parts)),
        refusal=lambda part, reply: _already_held(part, part.key, server, reply),
    )
    try:
        for part in request.parts:
            key = reservation_key(part.key)
            reservation = replace(part, key=key, queue=waiters_key(key), token=owner)
            with suppress(LeaseLost):
                yield from release(reservation, LeaseState(0, owner, math.inf))
    except GeneratorExit:
        raise
    except BaseException:
        # While a reservation exists, other jobs are refused as if this one had not begun.
        yield from undo(request)
        raise
    return state


def acquire(
    request: AcquireRequest, owner: bytes, server: ServerClock, wait_s: float | None
) -> Steps[LeaseState]:
    """Acquire the running lock, waiting up to ``wait_s`` seconds (``None``: no limit; 0: one try).

    :param owner: the token of a lock that is kept for the job; empty: none is.
    :raises NotAcquired: another holder still had the lock when the time was over.
    """
    if isinstance(request, MultiRequest):
        return multi.acquire(request, server, wait_s, owner)
    return protocol.acquire(request, server, wait_s)


def died(request: AcquireRequest, job: str, owner: bytes, holder: bytes) -> Steps[bool]:
    """Release the lock of a run whose process is dead; return whether there was such a run.

    :param job: the metadata of the run's lease.
    :param holder: how the holder of that lease begins; empty if unknown.
    :raises LockUnavailable: the server did not answer.
    """
    parts = request.key, request.queue, job.encode(), owner, holder
    reply = yield from ask_again(RunScript(DIED, parts))
    if isinstance(reply, list):
        raise conflict(request.key)
    return reply in (b"released", b"handed_over")

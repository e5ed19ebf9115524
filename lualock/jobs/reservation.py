"""The reservation of a queued job: a lock of its own, separate from the running lock."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from functools import partial

from lualock import _protocol as protocol
from lualock._protocol import LeaseState
from lualock.errors import LeaseLost, LockError
from lualock.jobs import verbs
from lualock.jobs.actions import Actions
from lualock.jobs.declaration import AnyLock
from lualock.jobs.identity import job_metadata

log = logging.getLogger("lualock.jobs")


def reservation_of(lock: AnyLock, ttl_s: float | None = None, job_id: str | None = None) -> AnyLock:
    """Return the reservation that belongs to a lock; without a ttl it is renewed.

    :param job_id: the job to note with it; ``None``: the one that is noted with the lock, if any.
    """
    metadata = None if job_id is None else job_metadata(job_id)
    return lock.derived(verbs.RESERVATION, ttl_s, metadata=metadata)


def release_held_by(lock: AnyLock, token: bytes) -> Actions[None]:
    """Release a lock, or a reservation, if this token has it."""
    state = LeaseState(0, token, math.inf)
    with suppress(LeaseLost):
        yield partial(lock.run, protocol.release(lock.request(token), state))


def extend_reservation(lock: AnyLock, token: bytes, ttl_s: float) -> Actions[bool]:
    """Keep a reservation for at least ``ttl_s`` seconds from now; return whether it still existed.

    An unreachable server raises nothing: the reservation then expires earlier.
    """
    request = reservation_of(lock).request(token, ttl_s)
    state = LeaseState(0, token, -math.inf)  # an unknown deadline: it is not shortened
    steps = protocol.extend(request, state, request.ttl_ms, lock.server_clock.clock)
    try:
        yield partial(lock.run, steps)
    except LeaseLost:
        return False
    except LockError as error:
        log.warning("a job's reservation beside lock %r expires early: %s", lock.name, error)
        return False
    return True

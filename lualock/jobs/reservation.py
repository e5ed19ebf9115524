"""The reservation of a queued job: a lock of its own, separate from the running lock."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from functools import partial
from typing import Any

from lualock import _protocol as protocol
from lualock._core import options
from lualock._core.keys import waiters_key
from lualock._protocol import AcquireRequest, LeaseState
from lualock.errors import LeaseLost, LockError
from lualock.jobs import verbs
from lualock.jobs.actions import Actions
from lualock.jobs.declaration import AnyLock
from lualock.jobs.identity import job_holder_info

log = logging.getLogger("lualock.jobs")


def reservation_of(lock: AnyLock, job_id: str | None, ttl: float | None) -> AnyLock:
    """Return the reservation that belongs to a lock; without a ttl it is renewed."""
    reservation = lock._locks.lock(lock._name, ttl)
    if job_id is not None:
        reservation._holder_info = job_holder_info(reservation._holder_info, job_id)
    reservation._key = verbs.reservation_key(lock.key)
    reservation._queue = waiters_key(reservation._key)
    return reservation


def reservation_request(lock: AnyLock, token: bytes) -> AcquireRequest:
    """Return a request for a reservation of which only the token is known."""
    key = verbs.reservation_key(lock.key)
    request = lock._request()
    request.key, request.queue, request.token = key, waiters_key(key), token
    return request


def release_reservation(lock: AnyLock, token: bytes) -> Actions[None]:
    """Release a reservation, if it exists."""
    driver: Any = lock._locks._driver
    state = LeaseState(0, token, math.inf)
    with suppress(LeaseLost):  # it does not exist any more
        yield partial(driver.run, protocol.release(reservation_request(lock, token), state))


def extend_reservation(lock: AnyLock, token: bytes, ttl_s: float) -> Actions[bool]:
    """Keep a reservation for at least ``ttl_s`` seconds from now; return whether it still existed.

    An unreachable server raises nothing: the reservation then expires earlier.
    """
    driver: Any = lock._locks._driver
    ttl_ms = options.ttl_ms(min(ttl_s, options.MAX_TTL_S))
    try:
        yield partial(
            driver.run,
            # An unknown deadline: the reservation is not shortened.
            protocol.extend(
                reservation_request(lock, token),
                LeaseState(0, token, -math.inf),
                ttl_ms,
                driver.clock,
            ),
        )
    except LeaseLost:
        return False
    except LockError as error:
        log.warning("a job's reservation beside lock %r expires early: %s", lock.name, error)
        return False
    return True

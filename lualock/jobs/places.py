"""The place of a queued job: a lock of its own, beside the one that is held while the job runs."""

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
from lualock.jobs.job import AnyLock
from lualock.jobs.terms import about_job

log = logging.getLogger("lualock.jobs")


def reservation_of(lock: AnyLock, job_id: str | None, ttl: float | None) -> AnyLock:
    """The lock of a queued job; without a ttl it is renewed."""
    place = lock._locks.lock(lock._name, ttl)
    if job_id is not None:
        place._holder_info = about_job(place._holder_info, job_id)
    place._key = verbs.reservation_key(lock.key)
    place._queue = waiters_key(place._key)
    return place


def ask_of(lock: AnyLock, token: bytes) -> AcquireRequest:
    """What stands for a place of which only the token is known."""
    key = verbs.reservation_key(lock.key)
    ask = lock._request()
    ask.key, ask.queue, ask.token = key, waiters_key(key), token
    return ask


def leave(lock: AnyLock, token: bytes) -> Actions[None]:
    """Give up a place, if it is there."""
    driver: Any = lock._locks._driver
    with suppress(LeaseLost):  # there is none any more
        yield partial(driver.run, protocol.release(ask_of(lock, token), LeaseState(0, math.inf)))


def keep(lock: AnyLock, token: bytes, ttl_s: float) -> Actions[bool]:
    """Keep a place for so long from now on, or longer; whether it was still there. Never raises for
    want of a server: it then ends earlier."""
    driver: Any = lock._locks._driver
    ttl_ms = options.ttl_ms(min(ttl_s, options.MAX_TTL_S))
    try:
        yield partial(
            driver.run,
            # Of no deadline that is known: it is not shortened.
            protocol.extend(ask_of(lock, token), LeaseState(0, -math.inf), ttl_ms, driver.clock),
        )
    except LeaseLost:
        return False
    except LockError as error:
        log.warning("a job's place beside lock %r ends early: %s", lock.name, error)
        return False
    return True

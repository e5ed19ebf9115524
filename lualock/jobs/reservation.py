"""The reservation of a queued job: a lock of its own, separate from the running lock."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from functools import partial

from lualock import _protocol as protocol
from lualock._protocol import LeaseState
from lualock.errors import LeaseLost, LockError, LockUnavailable
from lualock.jobs import verbs
from lualock.jobs.actions import Actions
from lualock.jobs.declaration import AnyLease, AnyLock
from lualock.jobs.delivery import RESERVE_S
from lualock.jobs.identity import job_metadata

log = logging.getLogger("lualock.jobs")


class Reservation:
    """The reservation of one job beside one of its locks.

    The methods that ask the server are generators of actions.

    :param token: the job's token, which may have the reservation.
    :param job_id: the job to note with it; ``None``: the one that is noted with the lock, if any.
    """

    def __init__(self, lock: AnyLock, token: bytes, job_id: str | None = None) -> None:
        metadata = None if job_id is None else job_metadata(job_id)
        self._running, self._token = lock, token
        self._lock = lock.derived(verbs.RESERVATION, RESERVE_S, metadata=metadata)
        self._lease: AnyLease | None = None  # while it is renewed

    def reserve(self, *, alone: bool = False) -> Actions[None]:
        """Take the reservation for :data:`RESERVE_S` seconds.

        :param alone: refuse also while a job runs.
        :raises AlreadyHeld: another job has it, or a job runs.
        """
        request = self._lock.request(self._token)
        server = self._lock.server_clock
        steps = verbs.reserve(request, self._running.key, server, alone=alone)
        yield partial(self._lock.run, steps)

    def hold(self) -> Actions[None]:
        """Take the reservation, and renew it while the job waits.

        :raises AlreadyHeld: another job has it.
        """
        renewed = self._lock.derived()
        request = renewed.request(self._token)
        steps = verbs.reserve(request, self._running.key, renewed.server_clock, alone=False)
        self._lease = yield partial(renewed.hold, request, steps)

    def stop_renewal(self) -> None:
        """Stop renewing the reservation; it then expires on its own."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.stop_watching()

    def extend(self, ttl_s: float) -> Actions[bool]:
        """Keep the reservation for at least ``ttl_s`` seconds; return whether it still existed.

        An unreachable server raises nothing: the reservation then expires earlier.
        """
        self.stop_renewal()
        request = self._lock.request(self._token, ttl_s)
        state = LeaseState(0, self._token, -math.inf)  # an unknown deadline: it is not shortened
        clock = self._lock.server_clock.clock
        try:
            yield partial(self._lock.run, protocol.extend(request, state, request.ttl_ms, clock))
        except LeaseLost:
            return False
        except LockError as error:
            name = self._lock.name
            log.warning("a job's reservation beside lock %r expires early: %s", name, error)
            return False
        return True

    def release(self) -> Actions[None]:
        """Release the reservation, if it exists.

        :raises LockUnavailable: whether it was released is unknown.
        """
        self.stop_renewal()
        yield from release_held_by(self._lock, self._token)

    def release_quietly(self) -> Actions[None]:
        """Release the reservation; in the background while the server is unreachable."""
        try:
            yield from self.release()
        except LockUnavailable as error:
            log.warning(
                "a job's reservation beside lock %r stays for now: %s", self._lock.name, error
            )
            yield from self.abandon()

    def abandon(self) -> Actions[None]:
        """Release the reservation in the background, until the server answers."""
        self.stop_renewal()
        yield from abandon_held_by(self._lock, self._token)


def release_held_by(lock: AnyLock, token: bytes) -> Actions[None]:
    """Release a lock or a reservation, if this token has it."""
    state = LeaseState(0, token, math.inf)
    with suppress(LeaseLost):
        yield partial(lock.run, protocol.release(lock.request(token), state))


def abandon_held_by(lock: AnyLock, token: bytes) -> Actions[None]:
    """Release in the background what this token may have."""
    yield partial(lock.abandon_in_background, lock.request(token))

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
    """The reservation of one job: a lock of its own beside each of the job's locks.

    The methods that ask the server are generators of actions.

    :param token: the job's token, which may have the reservation.
    :param job_id: the job to note with it; ``None``: the one that is noted with the lock, if any.
    """

    def __init__(self, lock: AnyLock, token: bytes, job_id: str | None = None) -> None:
        metadata = None if job_id is None else job_metadata(job_id)
        self._token = token
        self._lock = lock.derived(verbs.RESERVATION, RESERVE_S, metadata=metadata)
        self._leases: list[AnyLease] = []  # while it is renewed

    def reserve(self, *, alone: bool = False) -> Actions[None]:
        """Take the reservation for :data:`RESERVE_S` seconds.

        :param alone: refuse also while a job runs.
        :raises AlreadyHeld: another job has it, or a job runs.
        """
        yield from self._take(self._lock, alone=alone, renewed=False)

    def hold(self) -> Actions[None]:
        """Take the reservation, and renew it while the job waits.

        :raises AlreadyHeld: another job has it.
        """
        yield from self._take(self._lock.derived(), alone=False, renewed=True)

    def _take(self, lock: AnyLock, *, alone: bool, renewed: bool) -> Actions[None]:
        """Take it beside each lock, or beside none."""
        done: list[AnyLock] = []
        try:
            for part in lock.parts:
                request = part.request(self._token)
                steps = verbs.reserve(request, part.server_clock, alone=alone)
                if renewed:
                    self._leases.append((yield partial(part.hold, request, steps)))
                else:
                    yield partial(part.run, steps)
                done.append(part)
        except GeneratorExit:
            raise
        except BaseException as error:
            self.stop_renewal()
            if not isinstance(error, LockError):
                # An interruption, perhaps after one was taken and before that was noted.
                done = list(lock.parts)
            for part in done:
                yield from release_quietly_held_by(part, self._token)
            raise

    def stop_renewal(self) -> None:
        """Stop renewing the reservation; it then expires on its own."""
        while self._leases:
            self._leases.pop().stop_watching()

    def extend(self, ttl_s: float) -> Actions[bool]:
        """Keep the reservation for at least ``ttl_s`` seconds; return whether it still existed.

        An unreachable server raises nothing: the reservation then expires earlier.
        """
        self.stop_renewal()
        existed = True
        for part in self._lock.parts:
            request = part.request(self._token, ttl_s)
            state = LeaseState(0, self._token, -math.inf)  # an unknown end: it is not shortened
            clock = part.server_clock.clock
            try:
                yield partial(part.run, protocol.extend(request, state, request.ttl_ms, clock))
            except LeaseLost:
                existed = False
            except LockError as error:
                existed = False
                log.warning(
                    "a job's reservation beside lock %r expires early: %s", part.name, error
                )
        return existed

    def release(self) -> Actions[None]:
        """Release the reservation, if it exists.

        :raises LockUnavailable: whether it was released is unknown.
        """
        self.stop_renewal()
        yield from release_held_by(self._lock, self._token)

    def release_quietly(self) -> Actions[None]:
        """Release the reservation; in the background while the server is unreachable."""
        self.stop_renewal()
        yield from release_quietly_held_by(self._lock, self._token)

    def abandon(self) -> Actions[None]:
        """Release the reservation in the background, until the server answers."""
        self.stop_renewal()
        yield from abandon_held_by(self._lock, self._token)


def release_held_by(lock: AnyLock, token: bytes) -> Actions[None]:
    """Release a lock or a reservation, if this token has it.

    :raises LockUnavailable: whether it was released is unknown.
    """
    for part in lock.parts:
        state = LeaseState(0, token, math.inf)
        with suppress(LeaseLost):
            yield partial(part.run, protocol.release(part.request(token), state))


def release_quietly_held_by(lock: AnyLock, token: bytes) -> Actions[None]:
    """Release what this token may have; in the background while the server is unreachable."""
    try:
        yield from release_held_by(lock, token)
    except LockError as error:
        log.warning("a job's reservation beside lock %r stays for now: %s", lock.name, error)
        if isinstance(error, LockUnavailable):
            yield from abandon_held_by(lock, token)


def abandon_held_by(lock: AnyLock, token: bytes) -> Actions[None]:
    """Release in the background what this token may have."""
    yield partial(lock.abandon_in_background, lock.request(token))

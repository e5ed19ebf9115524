"""Acquire one lock of a run: the first try, and what a policy may do after that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lualock import _protocol as protocol
from lualock._core import options
from lualock._core.options import Seconds
from lualock._protocol import AcquireRequest, Steps, stop_request
from lualock.errors import LockError, LockUnavailable, NotAcquired
from lualock.jobs import verbs
from lualock.jobs.actions import Action, Actions
from lualock.jobs.declaration import AnyLease, AnyLock, Job, check_policy
from lualock.jobs.delivery import Delivery, RetryLater, Superseded, check_retry_s
from lualock.jobs.identity import job_metadata
from lualock.jobs.reservation import (
    extend_reservation,
    release_reservation,
    reservation_of,
    reservation_request,
)

log = logging.getLogger("lualock.jobs")

_REDELIVERY_RETRY_S, _REDELIVERY_MARGIN_S = 5.0, 0.05
"""When a redelivery of a running job comes back: a margin after that run's lease ends, but after
5 seconds at the latest."""


@dataclass(frozen=True)
class Contention:
    """What a policy function decides by: the job, and the holder of its lock. Times in seconds."""

    job: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    job_id: str | None
    holder: str | None
    held_s: float | None
    remaining_s: float | None


class Attempt:
    """One run's attempt to acquire one of its locks.

    Its methods are generators of actions, like those of :mod:`lualock.jobs.run`.
    """

    def __init__(
        self,
        job: Job,
        lock: AnyLock,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        delivery: Delivery | None,
        requests: list[AcquireRequest],
    ) -> None:
        self.job = job
        self.lock = lock
        self.args, self.kwargs = args, kwargs
        self.delivery = delivery
        self.job_id = None if delivery is None else delivery.job_id
        self.refused = NotAcquired()
        self._requests = requests
        self._owner = None if delivery is None else delivery.owner
        self._driver: Any = lock._locks._driver
        self._reservation: AnyLease | None = None  # while it must be renewed

    def take(self) -> Actions[AnyLease]:
        """Acquire the lock, with the job's policy if it is held; call :meth:`give_up` on an error.

        :raises RetryLater: the job should be delivered again.
        :raises NotAcquired: the job does not run.
        """
        request, server = self.lock._request(), self._driver.server_clock
        self._requests.append(request)
        if self._owner is None:
            steps = protocol.acquire(request, server, 0)
        else:
            steps = verbs.start(request, self._owner, server)
        try:
            lease: AnyLease = yield partial(self.lock._hold, request, steps)
            return lease
        except NotAcquired as refused:
            self.refused = refused
        yield from self._delay_redelivery()
        return (yield from self.go_on(self.job.options.policy))

    def give_up(self, error: BaseException) -> Actions[None]:
        """End an attempt that failed with this error.

        The reservation, and a lock that the job's last attempt kept for this one, stay only if the
        job will be delivered again: other jobs are dropped while they exist.
        """
        if self._owner is None:
            return
        delay_s = error.delay_s if isinstance(error, RetryLater) else self._retry_s(error)
        if isinstance(error, RetryLater) and self.delivery is not None and self.delivery.ended():
            delay_s = None  # the job system ignores this retry
        if delay_s is None and not isinstance(error, NotAcquired):  # if refused, none was kept
            yield from self._abandon_lock()
        if not self._may_have_reservation():
            return
        if delay_s is not None and self.delivery is not None:
            self.stop_renewal()
            ttl_s = delay_s + self.job.options.queue_ttl_s
            try:
                yield from extend_reservation(self.lock, self._owner, ttl_s)
            except GeneratorExit:
                raise
            except BaseException as interruption:
                yield from self.give_up(interruption)  # this error replaces the RetryLater
                raise
        elif isinstance(error, LockUnavailable):
            yield from self._abandon_reservation()
        else:
            yield from self._release_reservation_quietly()

    def _retry_s(self, error: BaseException) -> float | None:
        """Return in how many seconds the system retries a job that raises this, or ``None``."""
        if isinstance(error, NotAcquired) or self.delivery is None:
            return None
        if isinstance(error, LockUnavailable) and self.job.options.when_unavailable != "raise":
            return None  # it runs without its lock, or is dropped
        try:
            return check_retry_s(self.delivery.will_retry(error))
        except Exception:
            log.exception(
                "whether job %s is retried is not known, so its reservation is released",
                self.job.name,
            )
            return None

    def _delay_redelivery(self) -> Actions[None]:
        """Retry later, without the policy, if another delivery of this very job has the lock.

        That run is just ending, or its worker died and its lease will end, or the system delivered
        the job twice. In none of these cases does *another* job make this one superfluous.
        """
        if self.delivery is None or not isinstance(self.refused, verbs.AlreadyHeld):
            return
        if self.refused.metadata == job_metadata(self.delivery.job_id):
            left_s = self.refused.remaining_s
            delay_s = _REDELIVERY_RETRY_S
            if left_s is not None:
                delay_s = min(left_s + _REDELIVERY_MARGIN_S, _REDELIVERY_RETRY_S)
            yield from self.later(delay_s)

    def go_on(self, policy: Any) -> Actions[AnyLease]:
        """Apply a policy; :attr:`refused` says which holder has the lock."""
        while policy is not None and not hasattr(policy, "take"):
            policy = policy(self.contention)
            check_policy(policy)
        if policy is None:
            raise self.refused
        lease: AnyLease = yield from policy.take(self)
        return lease

    @property
    def contention(self) -> Contention:
        """What is known about the job and the holder now."""
        holder = self.refused.holder, self.refused.held_s, self.refused.remaining_s
        return Contention(self.job.name, self.args, self.kwargs, self.job_id, *holder)

    def refuse_own_wait(self, timeout: Seconds | None) -> None:
        """Refuse to wait without a limit for a run that this code itself is part of.

        :raises SelfDeadlock: it is part of a run that holds the lock.
        """
        if timeout is None:
            self.lock._locks._blocks.refuse_own_wait(self.lock._key, self.lock._task())

    def wait(self, timeout: Seconds | None, request: AcquireRequest | None = None) -> Actions[Any]:
        """Wait in the lock's queue; then release the job's reservation, if it has one.

        :raises NotAcquired: not within that time; it is stored as :attr:`refused`.
        :raises SelfDeadlock: this code is part of a run that holds the lock, and there is no limit.
        """
        request = request or self.lock._request()
        self._requests.append(request)
        steps = self.lock._acquire(request, options.wait_s(timeout))
        try:
            lease: Any = yield partial(self.lock._hold, request, steps)
        except NotAcquired as refused:
            self.refused = refused
            raise
        try:
            yield from self._release_reservation()
        except GeneratorExit:
            raise
        except BaseException:
            # While the reservation exists, other jobs are refused as if this one had not begun.
            yield from release_quietly(lease)
            raise
        return lease

    def later(self, delay: Seconds) -> Actions[None]:
        """Ask the system to deliver the job again; its reservation stays.

        :raises RetryLater: always, if the delay is valid.
        :raises InvalidArgument: the delay is not valid.
        """
        delay_s = options.delay_s(delay, "delay")
        refused = self.refused
        retry = RetryLater(
            f"{refused}; the job is tried again in {delay_s:g} s",
            name=refused.name,
            holder=refused.holder,
            held_s=refused.held_s,
            remaining_s=refused.remaining_s,
            ahead=refused.ahead,
        )
        retry.delay_s = delay_s
        retry.job_id = self.job_id
        raise retry from None

    def request_release(self, request: AcquireRequest, expires_in: Seconds) -> Action:
        """Return the action that asks the holder of the lock to stop.

        :raises InvalidArgument: ``expires_in`` is not valid.
        """
        expires_in_ms = options.ttl_ms(expires_in, "expires_in")
        server = self._driver.server_clock
        return self.action(stop_request.request_release(request, expires_in_ms, server))

    def action(self, steps: Steps[Any]) -> Action:
        """Return the action that carries out a protocol."""
        return partial(self._driver.run, steps)

    def reserve(self) -> Actions[None]:
        """Acquire the reservation, which one waiting job has, and renew it while the job waits.

        :raises Superseded: another job has it.
        """
        if self._owner is None:
            self._owner = self.lock._request().token
        reservation = reservation_of(self.lock, self.job_id, None)
        request = reservation._request()
        request.token = self._owner
        steps = verbs.reserve(request, self.lock.key, self._driver.server_clock, alone=False)
        try:
            self._reservation = yield partial(reservation._hold, request, steps)
        except verbs.AlreadyHeld as held:
            raise Superseded(
                f"could not run the job: another one ({held.metadata or held.holder}) already "
                f"waits for lock {self.lock.name!r}, begins later, and covers this one. There is "
                "nothing to do",
                name=self.refused.name,
                holder=self.refused.holder,
                held_s=self.refused.held_s,
                remaining_s=self.refused.remaining_s,
            ) from None

    def _release_reservation(self) -> Actions[None]:
        """Release the job's reservation.

        :raises LockUnavailable: whether it was released is unknown.
        """
        if self._owner is not None and self._may_have_reservation():
            self.stop_renewal()
            yield from release_reservation(self.lock, self._owner)

    def _release_reservation_quietly(self) -> Actions[None]:
        """Release the job's reservation; in the background while the server is unreachable."""
        try:
            yield from self._release_reservation()
        except LockUnavailable as error:
            log.warning("the reservation of job %s stays for now: %s", self.job.name, error)
            yield from self._abandon_reservation()

    def release_everything(self) -> Actions[None]:
        """Release the reservation and a kept lock of a job that ran without this lock."""
        yield from self._abandon_lock()
        yield from self._release_reservation_quietly()

    def _abandon_lock(self) -> Actions[None]:
        """Abandon the lock that the job's last attempt may have kept for this one."""
        if self._owner is None or self.delivery is None or not self.job.options.keep_lock_on_retry:
            return
        request = self.lock._request()
        request.token = self._owner
        yield abandon_in_background(self._driver, request)

    def _abandon_reservation(self) -> Actions[None]:
        assert self._owner is not None
        self.stop_renewal()
        yield abandon_in_background(self._driver, reservation_request(self.lock, self._owner))

    def _may_have_reservation(self) -> bool:
        """Return whether the job may have one, from its queue or an earlier delivery's policy."""
        declared = self.job.options
        may_reserve = declared.reserves or declared.policy is not None
        return self._reservation is not None or (self.delivery is not None and may_reserve)

    def stop_renewal(self) -> None:
        """Stop renewing the job's reservation; it then expires on its own."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None and reservation._renewer is not None:
            reservation._renewer.drop(reservation)


def restore_ttl(lease: AnyLease, lock: AnyLock) -> Actions[None]:
    """Give a lease the ttl and the renewal that the lock declares, when the run begins.

    Until then the lease was renewed, because the run waited for another lock.

    :raises LeaseLost: the lease ended meanwhile.
    """
    lease._set_renewed(lock._options.renew)
    yield partial(lease.extend, lock.ttl)


def release_quietly(lease: AnyLease) -> Actions[None]:
    """Release a lease that is not needed.

    While the server is unreachable this goes on in the background: the lease may have a long ttl.
    """
    try:
        yield lease.release
    except LockError as error:
        log.warning("could not clean up after a job's lock: %s", error)
        if isinstance(error, LockUnavailable):
            yield abandon_in_background(lease._driver, lease._request)


def abandon_in_background(driver: Any, request: AcquireRequest) -> Action:
    """Return the action that gives back what a token may hold, a lease or a reservation.

    It goes on in the background until the server answers.
    """
    return partial(driver.cleanup_in_background, protocol.abandon_request(request))

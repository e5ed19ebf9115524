"""Acquire the lock of a run: a first try, and what a policy may do after that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lualock._core import options
from lualock._core.options import Seconds
from lualock._protocol import AcquireRequest, Steps, stop_request
from lualock.errors import LockError, LockUnavailable, NotAcquired
from lualock.jobs import verbs
from lualock.jobs.actions import Action, Actions, quietly
from lualock.jobs.declaration import AnyLease, AnyLocks, Job, check_policy
from lualock.jobs.delivery import Delivery, RetryLater, Superseded
from lualock.jobs.identity import job_metadata
from lualock.jobs.reservation import Reservation

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


class Run:
    """One run of a job: its arguments, and its attempt at its lock."""

    def __init__(
        self,
        job: Job,
        locks: AnyLocks,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        delivery: Delivery | None,
    ) -> None:
        self.job, self.args, self.kwargs, self.delivery = job, args, kwargs, delivery
        self.job_id = None if delivery is None else delivery.job_id
        # All requests for a lease, also those whose result an interruption discarded.
        self.requests: list[AcquireRequest] = []
        names = () if delivery is None else delivery.names
        self.lock = job.whole_lock(locks, args, kwargs, self.job_id, names)
        self.queued_lock = job.queued_lock(locks, args, kwargs, self.job_id, names)

    def bind_callback(self, callback: Any, **extra: Any) -> Callable[[], Any]:
        """Return a call of a callback; see :meth:`Job.bind_callback`."""
        return self.job.bind_callback(callback, self.args, self.kwargs, **extra)


class Attempt:
    """One run's attempt to acquire its lock; ``lease`` is what it has won.

    Its methods are generators of actions, like those of :mod:`lualock.jobs.run`.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.job, self.delivery, self.lock = run, run.job, run.delivery, run.lock
        self.args, self.kwargs, self.job_id = run.args, run.kwargs, run.job_id  # for policies
        self.lease: AnyLease | None = None
        self.refused = NotAcquired()
        self.raises = False  # whether the caller gets that error, and on_skipped is not called
        # What the job may have beside the lock, from its queue or an earlier delivery's policy.
        self.reservation: Reservation | None = None
        declared = run.job.options
        if run.delivery is not None and (declared.reserves or declared.policy is not None):
            self.reservation = Reservation(run.queued_lock, run.delivery.owner)

    def pop_lease(self) -> AnyLease | None:
        """Return the lease, which the caller ends; the attempt does not have it any more."""
        lease, self.lease = self.lease, None
        return lease

    def take(self) -> Actions[None]:
        """Acquire the lock, with the job's policy if it is held; call :func:`give_up` on an error.

        :raises RetryLater: the job should be delivered again.
        :raises NotAcquired: the job does not run.
        """
        request, server = self.lock.request(), self.lock.server_clock
        self.run.requests.append(request)
        if self.delivery is None:
            steps = verbs.acquire(request, b"", server, 0)
        else:
            steps = verbs.start(request, self.delivery.owner, server)
        try:
            self.lease = yield partial(self.lock.hold, request, steps)
            return
        except NotAcquired as refused:
            self.refused = refused
        yield from self._delay_redelivery()
        self.lease = yield from self.go_on(self.job.options.policy)

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
            self.lock.refuse_own_wait()

    def wait(self, timeout: Seconds | None, request: AcquireRequest | None = None) -> Actions[Any]:
        """Wait in the lock's queue; then release the job's reservation, if it has one.

        :raises NotAcquired: not within that time; it is stored as :attr:`refused`.
        :raises SelfDeadlock: this code is part of a run that holds the lock, and there is no limit.
        """
        request = request or self.lock.request()
        self.run.requests.append(request)
        self.refuse_own_wait(timeout)
        owner = b"" if self.delivery is None else self.delivery.owner
        wait_s = options.wait_s(timeout)
        steps = verbs.acquire(request, owner, self.lock.server_clock, wait_s)
        try:
            lease: Any = yield partial(self.lock.hold, request, steps)
        except NotAcquired as refused:
            self.refused = refused
            raise
        try:
            if self.reservation is not None:
                yield from self.reservation.release()
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

    def request_release(self, request: AcquireRequest, expires_in: Seconds) -> Actions[None]:
        """Ask each holder of the lock to stop.

        :raises InvalidArgument: ``expires_in`` is not valid.
        """
        expires_in_ms = options.ttl_ms(expires_in, "expires_in")
        server = self.lock.server_clock
        for turn in request.turns:
            yield self.action(stop_request.request_release(turn, expires_in_ms, server))

    def withdraw(self, request: AcquireRequest) -> Actions[bool]:
        """Withdraw these stop requests; return false if a later requester waits for the lock.

        An error is logged.
        """
        superseded = False
        for turn in request.turns:
            withdrawn = yield from quietly(self.action(stop_request.withdraw(turn)))
            superseded = superseded or withdrawn is False
        return not superseded

    def action(self, steps: Steps[Any]) -> Action:
        """Return the action that carries out a protocol."""
        return partial(self.lock.run, steps)

    def reserve(self) -> Actions[None]:
        """Acquire the reservation, which one waiting job has, and renew it while the job waits.

        :raises Superseded: another job has it.
        """
        reservation = self.reservation or Reservation(self.lock, self.lock.request().token)
        try:
            yield from reservation.hold()
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
        self.reservation = reservation


def release_quietly(lease: AnyLease) -> Actions[None]:
    """Release a lease that is not needed.

    While the server is unreachable this goes on in the background: the lease may have a long ttl.
    """
    lease.release_early()
    try:
        yield lease.release
    except LockError as error:
        log.warning("could not clean up after a job's lock: %s", error)
        if isinstance(error, LockUnavailable):
            yield lease.abandon_in_background

"""How a run gets one of its locks: the first try, and what a policy may do when that is in vain."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lualock import _protocol as protocol
from lualock._core import options
from lualock._protocol import AcquireRequest, Steps, stop_request
from lualock.errors import LockError, LockUnavailable, NotAcquired
from lualock.jobs import verbs
from lualock.jobs.actions import Action, Actions
from lualock.jobs.job import AnyLease, AnyLock, Job
from lualock.jobs.places import ask_of, keep, leave, reservation_of
from lualock.jobs.terms import (
    Delivery,
    RetryLater,
    Superseded,
    check_policy,
    job_text,
    retry_s,
)

log = logging.getLogger("lualock.jobs")

OWN_RETRY_S, OWN_LATE_S = 5.0, 0.05
"""When a delivery of a job comes back that found another delivery of the same job running: after
its lease, but no later than some seconds."""


@dataclass(frozen=True)
class Contention:
    """What a policy that is a function decides by: the job, and who has its lock. In seconds."""

    job: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    job_id: str | None
    holder: str | None
    held_s: float | None
    remaining_s: float | None


class Attempt:
    """One run's way to one of its locks.

    Its methods are generators of things to call, as those of :mod:`lualock.jobs.run` are.
    """

    def __init__(
        self,
        job: Job,
        lock: AnyLock,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        delivery: Delivery | None,
        asks: list[AcquireRequest],
    ) -> None:
        self.job = job
        self.lock = lock
        self.args, self.kwargs = args, kwargs
        self.delivery = delivery
        self.job_id = None if delivery is None else delivery.job_id
        self.refused = NotAcquired()
        self._asks = asks
        self._owner = None if delivery is None else delivery.owner
        self._driver: Any = lock._locks._driver
        self._place: AnyLease | None = None  # while it must be renewed

    def take(self) -> Actions[AnyLease]:
        """The lease, by the job's policy. Who does not get it must say :meth:`give_up`.

        :raises RetryLater: the job is to be delivered again.
        :raises NotAcquired: it is not to run.
        """
        ask, server = self.lock._request(), self._driver.server_clock
        self._asks.append(ask)
        if self._owner is None:
            first = protocol.acquire(ask, server, 0)
        else:
            first = verbs.start(ask, self._owner, server)
        try:
            lease: AnyLease = yield partial(self.lock._hold, ask, first)
            return lease
        except NotAcquired as refused:
            self.refused = refused
        yield from self._same_job()
        return (yield from self.go_on(self.job.rules.policy))

    def give_up(self, error: BaseException) -> Actions[None]:
        """The job does not get this lock, for that reason. Nobody waits in its place then, which is
        kept only if the job is to be delivered again: others would be dropped for its sake. So is
        the lock, if the job's last attempt left it to this one."""
        if self._owner is None:
            return
        delay_s = error.delay_s if isinstance(error, RetryLater) else self._retry_s(error)
        if isinstance(error, RetryLater) and self.delivery is not None and self.delivery.ended():
            delay_s = None  # which nobody hears any more
        if delay_s is None and not isinstance(error, NotAcquired):  # that one says who else has it
            yield from self._abandon_lock()
        if not self._has_place():
            return
        if delay_s is not None and self.delivery is not None:
            self.renew_no_more()
            try:
                yield from keep(self.lock, self._owner, delay_s + self.job.rules.queue_ttl)
            except GeneratorExit:
                raise
            except BaseException as interruption:
                yield from self.give_up(interruption)  # which nobody may take for RetryLater
                raise
        elif isinstance(error, LockUnavailable):
            yield from self._abandon_reservation()
        else:
            yield from self.leave_quietly()

    def _retry_s(self, error: BaseException) -> float | None:
        """When the system tries the job again that raises this; ``None``: not at all."""
        if isinstance(error, NotAcquired) or self.delivery is None:
            return None
        if isinstance(error, LockUnavailable) and self.job.rules.on_unavailable != "raise":
            return None  # it runs without its lock, or is dropped
        try:
            return retry_s(self.delivery.will_retry(error))
        except Exception:
            log.exception("whether job %s is retried is not known: it has no place", self.job.name)
            return None

    def _same_job(self) -> Actions[None]:
        """Another delivery of this very job has the lock. It is ending just now, or its worker has
        died and its lease will end, or the system has delivered it twice: in any case this job is
        not superfluous because *another* one runs, so no policy is asked."""
        if self.delivery is None or not isinstance(self.refused, verbs.Taken):
            return
        if self.refused.metadata == job_text(self.delivery.job_id):
            left_s = self.refused.remaining_s
            delay_s = OWN_RETRY_S if left_s is None else min(left_s + OWN_LATE_S, OWN_RETRY_S)
            yield from self.later(delay_s)

    def go_on(self, policy: Any) -> Actions[AnyLease]:
        """Do what this policy says; :attr:`refused` says who has the lock."""
        while policy is not None and not hasattr(policy, "take"):
            policy = policy(self.situation)
            check_policy(policy)
        if policy is None:
            raise self.refused
        lease: AnyLease = yield from policy.take(self)
        return lease

    @property
    def situation(self) -> Contention:
        """What is known now."""
        who = self.refused.holder, self.refused.held_s, self.refused.remaining_s
        return Contention(self.job.name, self.args, self.kwargs, self.job_id, *who)

    def refuse_own_wait(self, timeout: float | None) -> None:
        """Refuse to wait without an end for the run that this code itself is part of.

        :raises SelfDeadlock: it is part of a run that holds the lock.
        """
        if timeout is None:
            self.lock._locks._blocks.refuse_own_wait(self.lock._key, self.lock._task())

    def wait(self, timeout: float | None, ask: AcquireRequest | None = None) -> Actions[Any]:
        """Wait in the lock's queue; then give up the job's place, if it has one.

        :raises NotAcquired: not within that time; :attr:`refused` says so.
        :raises SelfDeadlock: it is part of a run that holds the lock, and there is no such time.
        """
        ask = ask or self.lock._request()
        self._asks.append(ask)
        steps = self.lock._acquire(ask, options.wait_s(timeout))
        try:
            lease: Any = yield partial(self.lock._hold, ask, steps)
        except NotAcquired as refused:
            self.refused = refused
            raise
        try:
            yield from self.leave_place()
        except GeneratorExit:
            raise
        except BaseException:
            # As long as the place is there, others are told that this job has not begun.
            yield from release_quietly(lease)
            raise
        return lease

    def later(self, delay_s: float) -> Actions[None]:
        """Ask the system to deliver the job again; its place stays.

        :raises RetryLater: always.
        :raises InvalidArgument: but for a delay that is none.
        """
        options.delay_s(delay_s, "delay")
        refused = self.refused
        request = RetryLater(
            f"{refused}; the job is tried again in {delay_s:g} s",
            name=refused.name,
            holder=refused.holder,
            held_s=refused.held_s,
            remaining_s=refused.remaining_s,
            ahead=refused.ahead,
        )
        request.delay_s = delay_s
        request.job_id = self.job_id
        raise request from None

    def request_release(self, ask: AcquireRequest, lasts_s: float) -> Action:
        """Ask whoever has the lock to stop.

        :raises InvalidArgument: ``lasts_s`` cannot be used.
        """
        lasts_ms = options.ttl_ms(lasts_s, "lasts_s")
        return self.call(stop_request.request_release(ask, lasts_ms, self._driver.server_clock))

    def call(self, steps: Steps[Any]) -> Action:
        """Something to call that carries a protocol out."""
        return partial(self._driver.run, steps)

    def take_place(self) -> Actions[None]:
        """Be the one job that waits for the lock, for as long as this process lives.

        :raises Superseded: another is.
        """
        if self._owner is None:
            self._owner = self.lock._request().token
        place = reservation_of(self.lock, self.job_id, None)
        ask = place._request()
        ask.token = self._owner
        steps = verbs.reserve(ask, self.lock.key, self._driver.server_clock, alone=False)
        try:
            self._place = yield partial(place._hold, ask, steps)
        except verbs.Taken as other:
            raise Superseded(
                f"{self.refused}; another job ({other.metadata or other.holder}) will run after "
                "that, and stands for this one",
                name=self.refused.name,
                holder=self.refused.holder,
                held_s=self.refused.held_s,
                remaining_s=self.refused.remaining_s,
            ) from None

    def leave_place(self) -> Actions[None]:
        """Give up the job's place.

        :raises LockUnavailable: whether it is given up is not known.
        """
        if self._owner is not None and self._has_place():
            self.renew_no_more()
            yield from leave(self.lock, self._owner)

    def leave_quietly(self) -> Actions[None]:
        """Give up the job's place; where the server is away, behind everybody's back when it is
        there again."""
        try:
            yield from self.leave_place()
        except LockUnavailable as error:
            log.warning("the place of job %s is kept for now: %s", self.job.name, error)
            yield from self._abandon_reservation()

    def leave_all(self) -> Actions[None]:
        """The job has run without this lock: give up its place, and what was kept for it."""
        yield from self._abandon_lock()
        yield from self.leave_quietly()

    def _abandon_lock(self) -> Actions[None]:
        """Give up the lock that the job's last attempt may have kept for this one."""
        if self._owner is None or self.delivery is None or self.job.rules.on_retry != "hold":
            return
        ask = self.lock._request()
        ask.token = self._owner
        yield abandon_quietly(self._driver, ask)

    def _abandon_reservation(self) -> Actions[None]:
        assert self._owner is not None
        self.renew_no_more()
        yield abandon_quietly(self._driver, ask_of(self.lock, self._owner))

    def _has_place(self) -> bool:
        """Whether it may have one: from its queue, or by an earlier delivery's policy."""
        rules = self.job.rules
        may = rules.queues or rules.policy is not None
        return self._place is not None or (self.delivery is not None and may)

    def renew_no_more(self) -> None:
        """Let the job's place last as long as it does."""
        place, self._place = self._place, None
        if place is not None and place._renewer is not None:
            place._renewer.drop(place)


def last_for(lease: AnyLease, lock: AnyLock) -> Actions[None]:
    """The run begins, and has waited for another lock since it got this lease: from now on this one
    lasts as one of that lock does.

    :raises LeaseLost: it ended meanwhile.
    """
    lease._renewed = lock._options.renew
    yield partial(lease.extend, lock.ttl)


def release_quietly(lease: AnyLease) -> Actions[None]:
    """Release a lease that nobody needs; where the server is away, when it is there again, for its
    end may be far away."""
    try:
        yield lease.release
    except LockError as error:
        log.warning("cleaning up after a job's lock: %s", error)
        if isinstance(error, LockUnavailable):
            yield abandon_quietly(lease._driver, lease._request)


def abandon_quietly(driver: Any, ask: AcquireRequest) -> Action:
    """Give back whatever a token has of which that is not known, a lease or a place; behind
    everybody's back when the server is there again."""
    return partial(driver.cleanup_in_background, protocol.abandon_request(ask))

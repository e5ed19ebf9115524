"""A job together with its locks: what job systems and their integrations call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lualock.errors import InvalidArgument
from lualock.jobs import run
from lualock.jobs.actions import drive, drive_async
from lualock.jobs.counterpart import fitting
from lualock.jobs.enqueue import Entry
from lualock.jobs.job import AnyLock, AnyLocks, Job
from lualock.jobs.places import reservation_of
from lualock.jobs.terms import Delivery, Enqueued, Refused, Reserved

Args = Sequence[Any]
Kwargs = Mapping[str, Any]

SYSTEM = "__lualock_system__"
"""Where a function says whose leaf made it: see :func:`bound_in`."""


class JobAdapter:
    """A declared job, whichever way it was declared; :func:`bound` finds it.

    Each verb of enqueueing is there twice, for producers that are plain code and for coroutines:
    what the job itself is does not matter there.
    """

    def __init__(self, job: Job, locks: Callable[[], AnyLocks]) -> None:
        self._job = job
        self._locks = locks
        self.name = job.name
        self.body = job.body
        self.asynchronous = job.asynchronous
        self.unique = job.rules.unique

    def lock(self, args: Args = (), kwargs: Kwargs | None = None) -> AnyLock:
        """The lock of a run with these arguments."""
        return self._job.lock(self._fitting(self.asynchronous), _together(args), kwargs or {})

    def place(self, args: Args = (), kwargs: Kwargs | None = None) -> AnyLock:
        """The lock of a queued job with these arguments: its ``inspect()`` says which job that is,
        as metadata."""
        return reservation_of(self.lock(args, kwargs), None, None)

    def run(
        self, args: Args = (), kwargs: Kwargs | None = None, delivery: Delivery | None = None
    ) -> Any:
        """Run it under its lock; await the result if it is :attr:`asynchronous`.

        Returns what it returned, or what its ``on_failed`` did where the lock was held.

        :raises RetryLater: the policy wants it to be delivered again; it did not run.
        :raises LockUnavailable: with ``on_unavailable="raise"``; it did not run.
        """
        locks = self._fitting(self.asynchronous)
        return run.start(self._job, locks, _together(args), kwargs or {}, delivery)

    def enqueue(
        self,
        push: Callable[[str], Any],
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
        delay: float = 0.0,
    ) -> Enqueued | Refused:
        """Push a job into its queue unless another one is in its way.

        Without ``unique=`` it is just pushed. What ``push`` raises comes out, and then the job has
        no place.

        :param push: called once, or not at all, with the token that is to come with the job; empty
            where none is needed.
        :param token: a token made of the job's id (:func:`token_of`), for systems that cannot
            carry one; ``None``: a fresh one.
        :param delay: seconds before which it is not delivered, in which it keeps its place too.
        :raises InvalidArgument: it cannot be kept for so long; nothing was done.
        :raises LockUnavailable: with ``on_unavailable="raise"``; it was not pushed.
        """
        return drive(self._entry(args, kwargs).enqueue(push, job_id, token, delay))

    async def enqueue_async(
        self,
        push: Callable[[str], Any],
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
        delay: float = 0.0,
    ) -> Enqueued | Refused:
        """:meth:`enqueue`; ``push`` may be a coroutine function."""
        entry = self._entry(args, kwargs, asynchronous=True)
        return await drive_async(entry.enqueue(push, job_id, token, delay))

    def reserve(
        self,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
    ) -> Reserved | Refused:
        """The first part of :meth:`enqueue`: a place, for some seconds.

        Its ``token`` is to come with the job; empty where none is needed. The same token again gets
        the same place.
        """
        return drive(self._entry(args, kwargs).reserve(job_id, token))

    async def reserve_async(
        self,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
    ) -> Reserved | Refused:
        """:meth:`reserve`."""
        entry = self._entry(args, kwargs, asynchronous=True)
        return await drive_async(entry.reserve(job_id, token))

    def confirm(
        self, args: Args = (), kwargs: Kwargs | None = None, *, token: str, delay: float = 0.0
    ) -> bool:
        """The job is in its queue: keep its place. False: it had begun, or its place was over."""
        return drive(self._entry(args, kwargs).confirm(token, delay))

    async def confirm_async(
        self, args: Args = (), kwargs: Kwargs | None = None, *, token: str, delay: float = 0.0
    ) -> bool:
        """:meth:`confirm`."""
        entry = self._entry(args, kwargs, asynchronous=True)
        return await drive_async(entry.confirm(token, delay))

    def refuse(
        self, args: Args = (), kwargs: Kwargs | None = None, *, job_id: str, state: str = "queued"
    ) -> Refused:
        """For an integration whose system itself did not push the job, because it has one of that
        id: calls ``on_enqueue_failed`` as where lualock refuses it."""
        return drive(self._entry(args, kwargs).refuse(job_id, state, None))

    async def refuse_async(
        self, args: Args = (), kwargs: Kwargs | None = None, *, job_id: str, state: str = "queued"
    ) -> Refused:
        """:meth:`refuse`."""
        entry = self._entry(args, kwargs, asynchronous=True)
        return await drive_async(entry.refuse(job_id, state, None))

    def cancel(
        self,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str | None = None,
        token: str | None = None,
    ) -> None:
        """The job was removed, revoked or purged, or could not be pushed: give up what it has, its
        place and a lock that is kept for its retry.

        A run that has begun is not disturbed.

        :param token: what came with the job; for one that came without, say its ``job_id``, as to
            :class:`Delivery`.
        :raises LockUnavailable: what it still has ends by itself, in ``queue_ttl`` and its delay at
            the latest, unless it is cancelled again.
        """
        drive(self._entry(args, kwargs).cancel(job_id, token))

    async def cancel_async(
        self,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str | None = None,
        token: str | None = None,
    ) -> None:
        """:meth:`cancel`."""
        entry = self._entry(args, kwargs, asynchronous=True)
        await drive_async(entry.cancel(job_id, token))

    def died(
        self,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
        pid: int | None = None,
    ) -> bool:
        """The process that ran the job is known to be dead: free its lock now, not when the lease
        ends. Whether it had the lock; one that is kept for the job's retry stays.

        Only for who knows: a run of this job that lives would lose its lock.

        :param token: what came with the job, as for :class:`Delivery`.
        :param pid: the dead process, on this machine: then no later run of the same job, in another
            process, can be meant.
        :raises LockUnavailable: it ends by itself.
        """
        return drive(self._entry(args, kwargs).died(job_id, token, pid))

    async def died_async(
        self,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
        pid: int | None = None,
    ) -> bool:
        """:meth:`died`."""
        entry = self._entry(args, kwargs, asynchronous=True)
        return await drive_async(entry.died(job_id, token, pid))

    def _entry(self, args: Args, kwargs: Kwargs | None, *, asynchronous: bool = False) -> Entry:
        return Entry(self._job, self._fitting(asynchronous), _together(args), kwargs or {})

    def _fitting(self, asynchronous: bool) -> AnyLocks:
        return fitting(self._locks(), asynchronous=asynchronous)

    def __repr__(self) -> str:
        return f"<JobAdapter {self.name}>"


def _together(args: object) -> tuple[Any, ...]:
    if isinstance(args, str | bytes | Mapping) or not isinstance(args, Iterable):
        # Of a text each letter would be an argument.
        raise InvalidArgument(
            f"args must be a list or tuple of the job's arguments, not {type(args).__name__}"
        )
    return tuple(args)


def bound(job: Any) -> JobAdapter:
    """What was declared by ``locks.job`` or by a subclass of :class:`lualock.LockedJob`.

    :raises InvalidArgument: that is neither.
    """
    found = getattr(job, "__lualock__", None)
    if callable(found):  # the classmethod of LockedJob
        found = found()
    if not isinstance(found, JobAdapter):
        raise InvalidArgument(
            f"{job!r} is no job of lualock: decorate the function with locks.job (nearest to it), "
            "or make the class a LockedJob"
        )
    return found


def alone(job: Any) -> JobAdapter:
    """:func:`bound`, for a leaf: it runs the job itself, so that what is around that would never be
    called.

    :raises InvalidArgument: it is no job, or there is a decorator between it and ``locks.job``.
    """
    work = bound(job)
    if not isinstance(job, type) and getattr(job, "__wrapped__", None) != work.body:
        raise InvalidArgument(
            f"job {work.name}: what is around locks.job (another decorator, or pydantic=True of "
            "Celery) would never be called: put it below locks.job"
        )
    return work


def bound_in(system: str, function: Any) -> JobAdapter:
    """:func:`bound`, of what ``locked`` of a system's leaf made. Any other would run behind its
    lock as well, but not as the job that was queued, whose place would stay taken.

    :raises InvalidArgument: it is no job, or not what ``locked`` made.
    """
    work = bound(function)
    if getattr(function, SYSTEM, None) != system:
        raise InvalidArgument(
            f"job {work.name} cannot be enqueued as it is: decorate it with "
            f"lualock.jobs.{system}.locked, above locks.job"
        )
    return work

"""The ``JobAdapter`` of a declared job: what integrations call to run and enqueue it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lualock._core.options import Seconds
from lualock.errors import InvalidArgument
from lualock.jobs import run, verbs
from lualock.jobs.actions import drive, drive_async
from lualock.jobs.counterpart import locks_for
from lualock.jobs.declaration import AnyLock, AnyLocks, Job
from lualock.jobs.delivery import Delivery, Enqueued, Refused, Reserved
from lualock.jobs.enqueue import Entry

Args = Sequence[Any]
Kwargs = Mapping[str, Any]


class JobAdapter:
    """A declared job, as a function or as a class; :func:`adapter` finds it.

    Each method of enqueueing exists twice, for producers that are plain code and for coroutines.
    The kind of the job itself does not matter there.
    """

    def __init__(self, job: Job, locks: Callable[[], AnyLocks]) -> None:
        self.job = job
        self._locks = locks
        self.name = job.name
        self.body = job.body
        self.asynchronous = job.asynchronous
        self.unique = job.options.unique

    def lock(self, args: Args = (), kwargs: Kwargs | None = None) -> AnyLock:
        """Return the lock of a run with these arguments."""
        return self.job.lock(self._locks_for(self.asynchronous), _as_tuple(args), kwargs or {})

    def reservation(self, args: Args = (), kwargs: Kwargs | None = None) -> AnyLock:
        """Return the reservation of a queued job with these arguments, a lock of its own.

        The metadata of its ``inspect()`` says which job that is.
        """
        return self.lock(args, kwargs).derived(verbs.RESERVATION)

    def run(
        self, args: Args = (), kwargs: Kwargs | None = None, delivery: Delivery | None = None
    ) -> Any:
        """Run the job under its lock; await the result if the job is :attr:`asynchronous`.

        Return what the job returned, or what ``on_skipped`` returned if the lock was held.

        :raises RetryLater: the policy wants another delivery; the job did not run.
        :raises LockUnavailable: with ``when_unavailable="raise"``; the job did not run.
        """
        locks = self._locks_for(self.asynchronous)
        return run.start(self.job, locks, _as_tuple(args), kwargs or {}, delivery)

    def enqueue(
        self,
        push: Callable[[str], Any],
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
        delay: Seconds = 0.0,
    ) -> Enqueued | Refused:
        """Push a job into its queue unless it conflicts with another one.

        Without ``unique=`` it is always pushed. What ``push`` raises is raised here, and the job
        then has no reservation.

        :param push: called at most once, with the token that must travel with the job; the token
            is empty if none is needed.
        :param token: a token derived from the job's id (:func:`token_of`), for systems that cannot
            carry one; ``None``: a fresh one.
        :param delay: seconds before the job is delivered; it keeps its reservation meanwhile.
        :raises InvalidArgument: a reservation cannot last that long; nothing was done.
        :raises LockUnavailable: with ``when_unavailable="raise"``; the job was not pushed.
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
        delay: Seconds = 0.0,
    ) -> Enqueued | Refused:
        """Do the same as :meth:`enqueue`; ``push`` may be a coroutine function."""
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
        """Take the job's reservation for some seconds: the first part of :meth:`enqueue`.

        The ``token`` of the result must travel with the job; it is empty if none is needed. The
        same token again gets the same reservation.
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
        """Do the same as :meth:`reserve`."""
        entry = self._entry(args, kwargs, asynchronous=True)
        return await drive_async(entry.reserve(job_id, token))

    def confirm(
        self, args: Args = (), kwargs: Kwargs | None = None, *, token: str, delay: Seconds = 0.0
    ) -> bool:
        """Keep the reservation of a job that is in its queue now.

        Return whether it existed: it does not if the job has begun, or if it expired.
        """
        return drive(self._entry(args, kwargs).confirm(token, delay))

    async def confirm_async(
        self, args: Args = (), kwargs: Kwargs | None = None, *, token: str, delay: Seconds = 0.0
    ) -> bool:
        """Do the same as :meth:`confirm`."""
        entry = self._entry(args, kwargs, asynchronous=True)
        return await drive_async(entry.confirm(token, delay))

    def refuse(
        self, args: Args = (), kwargs: Kwargs | None = None, *, job_id: str, state: str = "queued"
    ) -> Refused:
        """Report a job that its system itself did not push, because it has one with that id.

        This calls ``on_enqueue_failed``, as if lualock had refused the job.
        """
        return drive(self._entry(args, kwargs).refuse(job_id, state, None))

    async def refuse_async(
        self, args: Args = (), kwargs: Kwargs | None = None, *, job_id: str, state: str = "queued"
    ) -> Refused:
        """Do the same as :meth:`refuse`."""
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
        """Release what a job holds that was removed, revoked or purged, or could not be pushed.

        That is its reservation, and a lock that is kept for its retry. A run that has begun is not
        affected.

        :param token: the token that came with the job; for a job without one, pass its ``job_id``,
            as to :class:`Delivery`.
        :raises LockUnavailable: cancel again. Otherwise what the job holds expires on its own,
            after at most ``queue_ttl`` and its delay.
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
        """Do the same as :meth:`cancel`."""
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
        """Release the lock of a job whose process is dead, before its lease ends.

        Return whether the job had the lock. A lock that is kept for the job's retry stays. Call
        this only if the process is certainly dead: a live run of this job loses its lock.

        :param token: the token that came with the job, as for :class:`Delivery`.
        :param pid: the dead process, on this machine. It excludes a later run of the same job in
            another process.
        :raises LockUnavailable: the lock expires on its own.
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
        """Do the same as :meth:`died`."""
        entry = self._entry(args, kwargs, asynchronous=True)
        return await drive_async(entry.died(job_id, token, pid))

    def _entry(self, args: Args, kwargs: Kwargs | None, *, asynchronous: bool = False) -> Entry:
        return Entry(self.job, self._locks_for(asynchronous), _as_tuple(args), kwargs or {})

    def _locks_for(self, asynchronous: bool) -> AnyLocks:
        return locks_for(self._locks(), asynchronous=asynchronous)

    def __repr__(self) -> str:
        return f"<JobAdapter {self.name}>"


def _as_tuple(args: object) -> tuple[Any, ...]:
    if isinstance(args, str | bytes | Mapping) or not isinstance(args, Iterable):
        # A str is iterable too: each of its letters would be an argument.
        raise InvalidArgument(
            f"args must be a list or tuple of the job's arguments, not {type(args).__name__}"
        )
    return tuple(args)


def adapter(job: Any) -> JobAdapter:
    """Return the adapter of a function with ``locks.job`` or of a :class:`lualock.LockedJob`.

    :raises InvalidArgument: ``job`` is neither.
    """
    found = getattr(job, "__lualock__", None)
    if callable(found):  # the classmethod of LockedJob
        found = found()
    if not isinstance(found, JobAdapter):
        raise InvalidArgument(
            f"could not use {job!r}: it is not a job of lualock. Decorate the function with "
            "locks.job (as the innermost decorator), or make the class a LockedJob"
        )
    return found

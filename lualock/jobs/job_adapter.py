"""The ``JobAdapter`` of a declared job: what integrations call to run and enqueue it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

from lualock._core.options import Seconds
from lualock._protocol import T
from lualock.errors import InvalidArgument
from lualock.jobs import verbs
from lualock.jobs.actions import Actions, drive, drive_async
from lualock.jobs.counterpart import locks_for
from lualock.jobs.declaration import AnyLock, AnyLocks, Job
from lualock.jobs.delivery import Delivery, Enqueued, Refused, Reserved
from lualock.jobs.enqueue import Entry
from lualock.jobs.run import run_job

Args = Sequence[Any]
Kwargs = Mapping[str, Any]
P = ParamSpec("P")


def _of_both_apis(
    verb: Callable[Concatenate[Any, AnyLocks, P], Actions[T]],
) -> tuple[Callable[Concatenate[Any, P], T], Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]]:
    """Return the two methods that carry a verb out: in this thread, and in this task.

    :param verb: the method that returns the actions; ``locks`` are those of the API in question.
    """

    def plain(self: JobAdapter, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return drive(verb(self, self._locks_for(False), *args, **kwargs))

    async def awaited(self: JobAdapter, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await drive_async(verb(self, self._locks_for(True), *args, **kwargs))

    # What help() and the reference show: the verb without `locks`, and the result of its actions.
    signature = inspect.signature(verb)
    own, _, *others = signature.parameters.values()
    result = str(signature.return_annotation).removeprefix("Actions[").removesuffix("]")
    signature = signature.replace(parameters=[own, *others], return_annotation=result)
    annotations = {one.name: one.annotation for one in others} | {"return": result}
    name = verb.__name__.removeprefix("_")
    verb.__qualname__ = f"JobAdapter.{name}"  # Python's TypeError for wrong arguments names it
    methods: list[tuple[Any, str]] = [(plain, name), (awaited, f"{name}_async")]
    for method, name in methods:
        method.__name__, method.__qualname__ = name, f"JobAdapter.{name}"
        method.__doc__, method.__signature__ = verb.__doc__, signature
        method.__annotations__ = annotations
    return plain, awaited


class JobAdapter:
    """A declared job, as a function or as a class; :func:`adapter` finds it.

    Each method of enqueueing exists twice, as :meth:`enqueue` for producers that are plain code and
    as ``enqueue_async`` for coroutines. The kind of the job itself does not matter there.
    """

    def __init__(self, job: Job, locks: Callable[[], AnyLocks]) -> None:
        self.job = job
        self._locks = locks
        self.name = job.name
        self.body = job.body
        self.asynchronous = job.asynchronous
        self.unique = job.options.unique

    @property
    def locks(self) -> AnyLocks:
        """The ``Locks`` that the job was declared with."""
        return self._locks()

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
        """Run the job under its lock; await the result if the job is ``asynchronous``.

        Return what the job returned, or what ``on_skipped`` returned if the lock was held.

        :raises RetryLater: the policy wants another delivery; the job did not run.
        :raises LockUnavailable: with ``when_unavailable="raise"``; the job did not run.
        """
        locks = self._locks_for(self.asynchronous)
        return run_job(self.job, locks, _as_tuple(args), kwargs or {}, delivery)

    def _enqueue(
        self,
        locks: AnyLocks,
        push: Callable[[str], Any],
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
        delay: Seconds = 0.0,
    ) -> Actions[Enqueued | Refused]:
        """Push a job into its queue unless it conflicts with another one.

        Without ``unique=`` it is always pushed. What ``push`` raises is raised here, and the job
        then has no reservation.

        :param push: called at most once, with the token that must travel with the job, and in which
            the names of its locks are; it is empty if none is needed. For ``enqueue_async`` it may
            be a coroutine function.
        :param token: a token derived from the job's id (:func:`token_of`), for systems that cannot
            carry one; ``None``: a fresh one.
        :param delay: seconds before the job is delivered; it keeps its reservation meanwhile.
        :raises InvalidArgument: a reservation cannot last that long; nothing was done.
        :raises LockUnavailable: with ``when_unavailable="raise"``; the job was not pushed.
        """
        return self._entry(locks, args, kwargs).enqueue(push, job_id, token, delay)

    enqueue, enqueue_async = _of_both_apis(_enqueue)

    def _reserve(
        self,
        locks: AnyLocks,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
    ) -> Actions[Reserved | Refused]:
        """Take the job's reservation for some seconds: the first part of :meth:`enqueue`.

        The ``token`` of the result must travel with the job; it is empty if none is needed. The
        same token again gets the same reservation.
        """
        return self._entry(locks, args, kwargs).reserve(job_id, token)

    reserve, reserve_async = _of_both_apis(_reserve)

    def _confirm(
        self,
        locks: AnyLocks,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        token: str,
        delay: Seconds = 0.0,
    ) -> Actions[bool]:
        """Keep the reservation of a job that is in its queue now.

        Return whether it existed: it does not if the job has begun, or if it expired.
        """
        return self._entry(locks, args, kwargs).confirm(token, delay)

    confirm, confirm_async = _of_both_apis(_confirm)

    def _refuse(
        self,
        locks: AnyLocks,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        state: str = "queued",
    ) -> Actions[Refused]:
        """Report a job that its system itself did not push, because it has one with that id.

        This calls ``on_enqueue_failed``, as if lualock had refused the job.
        """
        return self._entry(locks, args, kwargs).refuse(job_id, state, None)

    refuse, refuse_async = _of_both_apis(_refuse)

    def _cancel(
        self,
        locks: AnyLocks,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str | None = None,
        token: str | None = None,
    ) -> Actions[None]:
        """Release what a job holds that was removed, revoked or purged, or could not be pushed.

        That is its reservation, and a lock that is kept for its retry. A run that has begun is not
        affected.

        :param token: the token that came with the job; for a job without one, pass its ``job_id``,
            as to :class:`Delivery`.
        :raises LockUnavailable: cancel again. Otherwise what the job holds expires on its own,
            after at most ``queue_ttl`` and its delay.
        """
        return self._entry(locks, args, kwargs).cancel(job_id, token)

    cancel, cancel_async = _of_both_apis(_cancel)

    def _died(
        self,
        locks: AnyLocks,
        args: Args = (),
        kwargs: Kwargs | None = None,
        *,
        job_id: str,
        token: str | None = None,
        pid: int | None = None,
    ) -> Actions[bool]:
        """Release the lock of a job whose process is dead, before its lease ends.

        Return whether the job had the lock. A lock that is kept for the job's retry stays. Call
        this only if the process is certainly dead: a live run of this job loses its lock.

        :param token: the token that came with the job, as for :class:`Delivery`.
        :param pid: the dead process, on this machine. It excludes a later run of the same job in
            another process.
        :raises LockUnavailable: the lock expires on its own.
        """
        return self._entry(locks, args, kwargs).died(job_id, token, pid)

    died, died_async = _of_both_apis(_died)

    def _entry(self, locks: AnyLocks, args: Args, kwargs: Kwargs | None) -> Entry:
        return Entry(self.job, locks, _as_tuple(args), kwargs or {})

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

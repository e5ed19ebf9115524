"""The order of events of one run, the same for functions and coroutines.

* A run that finds the lock held applies the job's policy. If that does not get the lock either, the
  job does not run, and ``on_skipped`` is called instead.
* ``on_expired`` is called if, and only if, the server's reply to the release said that the lease
  was gone.
* An exception of the job is never replaced: errors of the release and of callbacks are attached to
  it as notes. An exception of a callback is raised only if the job itself raised nothing.
* The lock is released before any callback runs, so that no callback keeps it held. Or it is kept
  for the job's own retry; ``start`` then hands it over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from lualock._core.decorating import check_result
from lualock._protocol import LeaseState
from lualock.errors import LeaseLost, LockError, LockUnavailable, NotAcquired
from lualock.jobs.acquire import Attempt, Run, release_quietly
from lualock.jobs.actions import Actions, drive, drive_async
from lualock.jobs.declaration import AnyLease, AnyLocks, Job
from lualock.jobs.delivery import Delivery, RetryLater
from lualock.jobs.finish import finish, give_up

log = logging.getLogger("lualock.jobs")

# The leases of the runs that this code is part of: (the lock's key, the lease), innermost last.
_current: ContextVar[tuple[tuple[bytes, AnyLease], ...]] = ContextVar("lualock_runs", default=())


@dataclass
class Expected:
    """The delivery of a job whose run begins inside a decorator above it."""

    job: Job
    delivery: Delivery | None
    begun: bool = False


_expected: ContextVar[Expected | None] = ContextVar("lualock_expected", default=None)


def execute(run: Run) -> Actions[Any]:
    """Run a job; return its result, or what ``on_skipped`` returned when the lock was held.

    :raises RetryLater: the job should be delivered again; it did not run.
    """
    outer_runs = _current.get()
    try:
        return (yield from _execute(run))
    except GeneratorExit:
        raise
    except BaseException:
        # An interruption may come between any two lines: abandon what they did not.
        _current.set(outer_runs)
        for request in run.requests:
            if request.state is not None and not _is_over(request.state):
                yield partial(run.lock.abandon_in_background, request)
        raise


def _is_over(state: LeaseState) -> bool:
    return state.released or state.lost or state.is_release_unknown


def _execute(run: Run) -> Actions[Any]:
    job, attempt = run.job, Attempt(run)
    try:
        yield from _acquire(attempt)
    except RetryLater as later:
        log.info("job %s did not run: %s", job.name, later)
        raise
    except NotAcquired as refused:
        log.info("job %s did not run: %s", job.name, refused)
        if attempt.raises:
            raise
        if job.on_skipped is None:
            return None
        return (yield run.bind_callback(job.on_skipped, holder=refused.holder))

    lease, locks = attempt.lease, run.lock.parts
    outer_runs = _current.get()
    try:
        if lease is not None:
            _current.set((*outer_runs, *((lock.key, lease) for lock in locks)))
        if run.delivery is not None and run.delivery.ended():
            raise LockError(
                f"could not run job {job.name}: its job system gave it up while it waited for its "
                "lock"
            )
        blocks = [] if lease is None else [lock.begin_block(lease) for lock in locks]
        try:
            result = yield partial(job.body, *run.args, **run.kwargs)
        finally:
            for block in blocks:
                block.close()
        check_result(result, f"job {job.name}")
    except GeneratorExit:
        raise
    except BaseException as error:
        _current.set(outer_runs)
        yield from finish(attempt, error, None)
        raise
    _current.set(outer_runs)
    yield from finish(attempt, None, result)
    return result


def _acquire(attempt: Attempt) -> Actions[None]:
    """Acquire the lock of the run.

    With ``when_unavailable="run"`` the run goes on without it while the server is unreachable.
    """
    when_unavailable = attempt.job.options.when_unavailable
    try:
        yield from attempt.take()
    except GeneratorExit:
        if attempt.reservation is not None:
            attempt.reservation.stop_renewal()
        raise
    except BaseException as error:
        if (lease := attempt.pop_lease()) is not None:
            yield from release_quietly(lease)
        else:
            yield from give_up(attempt, error)
        if not isinstance(error, LockUnavailable) or when_unavailable == "raise":
            raise
        if when_unavailable == "skip":
            raise NotAcquired(str(error), name=attempt.lock.name) from error
        log.warning("job %s runs without its lock: %s", attempt.job.name, error)


def run_job(
    job: Job,
    locks: AnyLocks,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    delivery: Delivery | None = None,
) -> Any:
    """Run a job; for a coroutine function, return the coroutine that runs it."""
    expected = _expected.get()
    if expected is not None and expected.job is job and not expected.begun:
        expected.begun = True  # the delivery belongs to this run, not to runs that it calls
        delivery = expected.delivery
    run = Run(job, locks, args, kwargs, delivery)
    actions = execute(run)
    return drive_async(actions) if job.asynchronous else drive(actions)


@contextmanager
def delivering(job: Job, delivery: Delivery | None) -> Iterator[Expected]:
    """Give a delivery to the next run of a job here: the body calls a decorator above it.

    The result says whether the run has begun; the decorator may not call the job at all.
    """
    expected = Expected(job, delivery)
    reset_token = _expected.set(expected)
    try:
        yield expected
    finally:
        _expected.reset(reset_token)


def current_lease() -> Any:
    """Return the lease of the innermost run that this code is part of.

    It is a :class:`lualock.Lease` in a plain job, a :class:`lualock.aio.Lease` in a coroutine. It
    is ``None`` outside of any run, and in a run without a lock because the server is unreachable.
    """
    runs = _current.get()
    return runs[-1][1] if runs else None


def refresh(job: Job, locks: AnyLocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Give the run that this code is part of its whole ttl again, from now on.

    :raises LeaseLost: this code is part of no run with these arguments, or its lease has ended.
    """
    lock = job.whole_lock(locks, args, kwargs)
    current = dict(_current.get())  # of two runs of one lock, the innermost
    lease = current.get(lock.key)
    if lease is None:
        raise LeaseLost(
            f"could not refresh lock {lock.name!r}: this code is part of no run of job {job.name} "
            "with these arguments. Call it inside the run (start a thread of the job with "
            "contextvars.copy_context().run)",
            name=lock.name,
        )
    return lease.extend(lock.ttl)

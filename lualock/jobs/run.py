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
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from lualock._core.decorating import check_result
from lualock._protocol import LeaseState
from lualock.errors import LeaseLost, LockError, LockUnavailable, NotAcquired
from lualock.jobs.acquire import Attempt, abandon_in_background, release_quietly, restore_ttl
from lualock.jobs.actions import Actions, drive, drive_async
from lualock.jobs.declaration import AnyLease, AnyLocks, Job, Run
from lualock.jobs.delivery import Delivery, RetryLater
from lualock.jobs.finish import finish

log = logging.getLogger("lualock.jobs")

# The leases of the runs that this code is part of: (the lock's key, the lease), innermost last.
_current: ContextVar[tuple[tuple[bytes, AnyLease], ...]] = ContextVar("lualock_runs", default=())


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
                yield abandon_in_background(run.locks[0]._locks._driver, request)
        raise


def _is_over(state: LeaseState) -> bool:
    return state.released or state.lost or state.is_release_unknown


def _execute(run: Run) -> Actions[Any]:
    job = run.job
    try:
        yield from _acquire_all(run)
    except RetryLater as later:
        log.info("job %s did not run: %s", job.name, later)
        raise
    except NotAcquired as refused:
        log.info("job %s did not run: %s", job.name, refused)
        if job.on_skipped is None:
            return None
        return (yield run.bind_callback(job.on_skipped, holder=refused.holder))

    # With two locks, the first-acquired one comes last: a job that wants to replace this run is
    # refused at that lock, and sends its stop request there. Code that knows only the other name
    # sends it to the other lock.
    if run.held:
        run.held[0][1]._sibling_leases = tuple(lease for _, lease in run.held[1:])
    leases = ((lock.key, lease) for lock, lease in reversed(run.held))
    outer_runs = _current.get()
    try:
        _current.set((*outer_runs, *leases))
        if run.delivery is not None and run.delivery.ended():
            raise LockError(
                f"could not run job {job.name}: its job system gave it up while it waited for its "
                "lock"
            )
        blocks = [lock._inside(lease) for lock, lease in run.held]
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
        yield from finish(run, error, None)
        raise
    _current.set(outer_runs)
    yield from finish(run, None, result)
    return result


def _acquire_all(run: Run) -> Actions[None]:
    """Acquire all locks of the run, or none.

    With ``when_unavailable="run"`` the run goes on without them while the server is unreachable.
    """
    when_unavailable = run.job.options.when_unavailable
    try:
        yield from _acquire_each(run)
    except GeneratorExit:
        raise
    except BaseException as error:
        unavailable = isinstance(error, LockUnavailable)
        if unavailable and when_unavailable == "run":
            log.warning("job %s runs without its lock: %s", run.job.name, error)
            for _, lease in run.held:  # it waits for no other lock any more; see `restore_ttl`
                lease._set_renewed(run.locks[-1]._options.renew)
            return
        while run.held:
            yield from release_quietly(run.held.pop()[1])
        if unavailable and when_unavailable == "skip":
            raise NotAcquired(str(error), name=run.locks[-1].name) from error
        raise


def _acquire_each(run: Run) -> Actions[None]:
    attempts = [
        Attempt(run.job, lock, run.args, run.kwargs, run.delivery, run.requests)
        for lock in run.locks
    ]
    try:
        for attempt in attempts:
            lease = yield from attempt.take()
            run.held.append((attempt.lock, lease))
        for _, lease in run.held[:-1]:
            yield from restore_ttl(lease, run.locks[-1])
    except GeneratorExit:
        for attempt in attempts:
            attempt.stop_renewal()
        raise
    except BaseException as error:
        run.failed_attempts = attempts[len(run.held) :]
        for attempt in run.failed_attempts:
            yield from attempt.give_up(error)
        raise


def start(
    job: Job,
    locks: AnyLocks,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    delivery: Delivery | None = None,
) -> Any:
    """Run a job; for a coroutine function, return the coroutine that runs it."""
    actions = execute(Run(job, locks, args, kwargs, delivery))
    return drive_async(actions) if job.asynchronous else drive(actions)


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
    job_locks = job.locks_in_order(locks, args, kwargs)
    current = dict(_current.get())  # of two runs of one lock, the innermost
    leases = [current[lock.key] for lock in job_locks if lock.key in current]
    if not leases:
        lock = job.lock(locks, args, kwargs)
        raise LeaseLost(
            f"could not refresh lock {lock.name!r}: this code is part of no run of job {job.name} "
            "with these arguments. Call it inside the run (start a thread of the job with "
            "contextvars.copy_context().run)",
            name=lock.name,
        )
    actions = (partial(lease.extend, job_locks[0].ttl) for lease in leases)
    return drive_async(actions) if job.asynchronous else drive(actions)

"""The order of events of one run, the same for functions and coroutines.

Rules that hold here:

* A run that finds the lock held does what the job's policy says, and if that does not get the lock
  either it does not run: ``on_failed`` is called instead.
* ``on_expired`` is called when, and only when, the server's reply to the release said that the
  lease was gone.
* What the job raised goes on, whatever release and callbacks do: theirs is attached to it as a
  note. What a callback raises goes on only where the job itself raised nothing.
* The lock is released before any callback runs, so that no callback leaves it held; or it is kept
  for the job's own retry, which is given it by ``start``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from lualock import _protocol as protocol
from lualock._protocol import LeaseState
from lualock.errors import InvalidArgument, LeaseLost, LockError, LockUnavailable, NotAcquired
from lualock.jobs.actions import Actions, drive, drive_async
from lualock.jobs.finish import finish
from lualock.jobs.job import AnyLease, AnyLocks, Job, Run
from lualock.jobs.taking import Attempt, abandon_quietly, last_for, release_quietly
from lualock.jobs.terms import Delivery, RetryLater

log = logging.getLogger("lualock.jobs")

# The leases of the runs that this code is part of: (the lock's key, the lease), innermost last.
_current: ContextVar[tuple[tuple[bytes, AnyLease], ...]] = ContextVar("lualock_runs", default=())


def run(it: Run) -> Actions[Any]:
    """One run: the job's result, or what ``on_failed`` returned when the lock was held.

    :raises RetryLater: the job is to be delivered again; it did not run.
    """
    before = _current.get()
    try:
        return (yield from _run(it))
    except GeneratorExit:
        raise
    except BaseException:
        # An interruption may come between any two lines: what they would have given up is.
        _current.set(before)
        for ask in it.asks:
            if ask.state is not None and not _is_over(ask.state):
                yield abandon_quietly(it.locks[0]._locks._driver, ask)
        raise


def _is_over(grant: LeaseState) -> bool:
    return grant.released or grant.lost or protocol.is_release_unknown(grant)


def _run(it: Run) -> Actions[Any]:
    job = it.job
    try:
        yield from _take_all(it)
    except RetryLater as later:
        log.info("job %s did not run: %s", job.name, later)
        raise
    except NotAcquired as refused:
        log.info("job %s did not run: %s", job.name, refused)
        if job.on_failed is None:
            return None
        return (yield it.call(job.on_failed, holder=refused.holder))

    # Of two the first last: there who wants to replace this run is refused, and asks it to stop.
    # But code that knows only one of the names asks there.
    if it.held:
        it.held[0][1]._beside = tuple(lease for _, lease in it.held[1:])
    ours = ((lock.key, lease) for lock, lease in reversed(it.held))
    before = _current.get()
    try:
        _current.set((*before, *ours))
        if it.delivery is not None and it.delivery.ended():
            raise LockError(f"job {job.name} got its lock when its system had given it up")
        blocks = [lock._inside(lease) for lock, lease in it.held]
        try:
            result = yield partial(job.body, *it.args, **it.kwargs)
        finally:
            for block in blocks:
                block.done()
        if isinstance(result, AsyncGenerator | Awaitable | Generator):
            if isinstance(result, Coroutine | Generator):
                result.close()
            raise InvalidArgument(
                f"job {job.name} returned a {type(result).__name__}, which would run without the "
                "lock: declare the job as 'async def' and await it there, or iterate there"
            )
    except GeneratorExit:
        raise
    except BaseException as error:
        _current.set(before)
        yield from finish(it, error, None)
        raise
    _current.set(before)
    yield from finish(it, None, result)
    return result


def _take_all(it: Run) -> Actions[None]:
    """Take all locks of the run, or none; or go on without, if that is what the job wants while the
    server is away."""
    rules = it.job.rules
    try:
        yield from _take_each(it)
    except GeneratorExit:
        raise
    except BaseException as error:
        away = isinstance(error, LockUnavailable)
        if away and rules.on_unavailable == "run":
            log.warning("job %s runs without its lock: %s", it.job.name, error)
            for _, lease in it.held:  # it waits for no other lock any more; see `last_for`
                lease._renewed = it.locks[-1]._options.renew
            return
        while it.held:
            yield from release_quietly(it.held.pop()[1])
        if away and rules.on_unavailable == "skip":
            raise NotAcquired(str(error), name=it.locks[-1].name) from error
        raise


def _take_each(it: Run) -> Actions[None]:
    attempts = [
        Attempt(it.job, lock, it.args, it.kwargs, it.delivery, it.asks) for lock in it.locks
    ]
    try:
        for attempt in attempts:
            lease = yield from attempt.take()
            it.held.append((attempt.lock, lease))
        for _, lease in it.held[:-1]:
            yield from last_for(lease, it.locks[-1])
    except GeneratorExit:
        for attempt in attempts:
            attempt.renew_no_more()
        raise
    except BaseException as error:
        it.without = attempts[len(it.held) :]
        for attempt in it.without:
            yield from attempt.give_up(error)
        raise


def start(
    job: Job,
    locks: AnyLocks,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    delivery: Delivery | None = None,
) -> Any:
    """Run a job, or for a coroutine function return the coroutine that runs it."""
    actions = run(Run(job, locks, args, kwargs, delivery))
    return drive_async(actions) if job.asynchronous else drive(actions)


def current_lease() -> Any:
    """The lease of the run that this code is part of, of the innermost one.

    A :class:`lualock.Lease` in a plain job, a :class:`lualock.aio.Lease` in a coroutine; ``None``
    outside of any run, and in one that runs without its lock because the server is away.
    """
    runs = _current.get()
    return runs[-1][1] if runs else None


def refresh(job: Job, locks: AnyLocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Give the run that this code is part of its whole timeout again, from now on.

    :raises LeaseLost: this code is part of no run with these arguments, or its lease has ended.
    """
    wanted = job.locks(locks, args, kwargs)
    ours = dict(_current.get())  # of two runs of one lock the innermost
    leases = [ours[lock.key] for lock in wanted if lock.key in ours]
    if not leases:
        lock = job.lock(locks, args, kwargs)
        raise LeaseLost(
            f"refresh of lock {lock.name!r}: this code is part of no run of job {job.name} with "
            "these arguments, so it has no lease to refresh (a thread that the job started must "
            "be started with contextvars.copy_context().run)",
            name=lock.name,
        )
    actions = (partial(lease.extend, wanted[0].ttl) for lease in leases)
    return drive_async(actions) if job.asynchronous else drive(actions)

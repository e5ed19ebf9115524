"""The order of events of one run, the same for functions and coroutines.

:func:`run` is a generator of things to call; what each returns (or, in asyncio, what awaiting it
gives) is sent back in, what it raises is thrown back in. Rules that hold here:

* A run that finds the lock held does not run: ``on_failed`` is called instead.
* ``on_expired`` is called when, and only when, the server's reply to the release said that the
  lease was gone.
* What the job raised goes on, whatever release and callbacks do: theirs is attached to it as a
  note. What a callback raises goes on only where the job itself raised nothing.
* The lock is released before any callback runs, so that no callback leaves it held.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from lualock import aio, sync
from lualock.errors import InvalidArgument, LeaseLost, LockError, NotAcquired
from lualock.jobs import arguments
from lualock.protocol import note

log = logging.getLogger("lualock.jobs")

Action = Callable[[], Any]
AnyLocks = sync.Locks | aio.Locks
AnyLease = sync.Lease | aio.Lease
AnyLock = sync.Lock | aio.Lock

# The leases of the runs that this code is part of: (the lock's key, the lease), innermost last.
_current: ContextVar[tuple[tuple[bytes, AnyLease], ...]] = ContextVar("lualock_runs", default=())


def _no_limit(*args: Any, **kwargs: Any) -> None:
    """The timeout of a job that names none."""


@dataclass
class Job:
    """What is known of a job: how to run it, what its lock is called, whom to tell."""

    name: str
    body: Callable[..., Any]
    lock_name: Callable[..., object]
    timeout: Callable[..., float | None] = _no_limit
    on_failed: Callable[..., Any] | None = None
    on_expired: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        self.signature = inspect.signature(self.body)
        self.asynchronous = inspect.iscoroutinefunction(self.body)
        if inspect.isgeneratorfunction(self.body) or inspect.isasyncgenfunction(self.body):
            raise InvalidArgument(
                f"job {self.name} is a generator function: calling it only makes a generator, so "
                "its lock would be released before it runs. Iterate inside of the job"
            )

    def lock(self, locks: AnyLocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AnyLock:
        """The lock of one call.

        :raises TypeError: the arguments do not fit the job's signature.
        :raises InvalidArgument: no lock's name, or no ttl, can be made of them.
        """
        self.signature.bind(*args, **kwargs)
        name = self.lock_name(*args, **kwargs)
        if not isinstance(name, str | bytes):
            raise InvalidArgument(
                f"the lock's name of job {self.name} must be str or bytes, not "
                f"{type(name).__name__}"
            )
        return locks.lock(name, self.timeout(*args, **kwargs))

    def default_name(self, *args: Any, **kwargs: Any) -> str:
        """The job's name and its arguments."""
        return arguments.lock_name(self.name, arguments.bind(self.signature, args, kwargs))


def run(
    job: Job, lock: AnyLock, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Generator[Action, Any, Any]:
    """One run: the job's result, or what ``on_failed`` returned when the lock was held."""
    try:
        lease: AnyLease = yield partial(lock.acquire, timeout=0)
    except NotAcquired as refused:
        log.info("job %s did not run: %s", job.name, refused)
        if job.on_failed is None:
            return None
        told = dict(kwargs)
        if _wants_holder(job):
            told["holder"] = refused.holder
        return (yield partial(job.on_failed, *args, **told))

    before = _current.set((*_current.get(), (lock.key, lease)))
    try:
        result = yield partial(job.body, *args, **kwargs)
        if inspect.iscoroutine(result):
            result.close()
            raise InvalidArgument(
                f"job {job.name} returned a coroutine, which would run without the lock: declare "
                "the job as 'async def', and await it there"
            )
    except GeneratorExit:
        raise
    except BaseException as error:
        _current.reset(before)
        yield from _finish(job, lease, args, kwargs, error)
        raise
    _current.reset(before)
    yield from _finish(job, lease, args, kwargs, None)
    return result


def _finish(
    job: Job,
    lease: AnyLease,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: BaseException | None,
) -> Generator[Action, Any, None]:
    try:
        yield lease.release
        return
    except LeaseLost as lost:
        log.warning("job %s outlived its lease: %s", job.name, lost)
        problem: LockError = lost
    except LockError as unknown:
        # The run is over, and whether its lock is free will show when the lease ends.
        log.error("job %s could not release its lock: %s", job.name, unknown)
        problem = unknown
    if error is not None:
        note(error, f"and then: {problem}")
    if job.on_expired is None or not isinstance(problem, LeaseLost):
        return
    try:
        yield partial(job.on_expired, *args, **kwargs)
    except GeneratorExit:
        raise
    except Exception as failure:
        if error is None:
            raise
        log.exception("the expiry callback of job %s raised", job.name)
        note(error, f"and then its expiry callback raised: {failure!r}")


def _wants_holder(job: Job) -> bool:
    if "holder" in job.signature.parameters or job.on_failed is None:
        return False  # an argument of the job's own goes to the callback as it is
    try:
        return "holder" in inspect.signature(job.on_failed).parameters
    except (TypeError, ValueError):  # a callable without a signature, such as some builtins
        return False


def drive(actions: Generator[Action, Any, Any]) -> Any:
    """Carry a run out in this thread."""
    try:
        action = next(actions)
        while True:
            try:
                reply = action()
            except BaseException as error:
                action = actions.throw(error)
            else:
                action = actions.send(reply)
    except StopIteration as done:
        return done.value


async def drive_async(actions: Generator[Action, Any, Any]) -> Any:
    """Carry a run out in this task; callbacks may be plain functions or coroutine functions."""
    try:
        action = next(actions)
        while True:
            try:
                reply = action()
                if inspect.isawaitable(reply):
                    reply = await reply
            except GeneratorExit:
                raise
            except BaseException as error:
                action = actions.throw(error)
            else:
                action = actions.send(reply)
    except StopIteration as done:
        return done.value


def start(job: Job, locks: AnyLocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a job, or for a coroutine function return the coroutine that runs it."""
    actions = run(job, job.lock(locks, args, kwargs), args, kwargs)
    return drive_async(actions) if job.asynchronous else drive(actions)


def refresh(job: Job, locks: AnyLocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Give the run that this code is part of its whole timeout again, from now on.

    :raises LeaseLost: this code is part of no run with these arguments, or its lease has ended.
    """
    lock = job.lock(locks, args, kwargs)
    for key, lease in reversed(_current.get()):
        if key == lock.key:
            return lease.extend(lock.ttl)
    raise LeaseLost(
        f"refresh of lock {lock.name!r}: this code is part of no run of job {job.name} with "
        "these arguments, so it has no lease to refresh (a thread that the job started must "
        "be started with contextvars.copy_context().run)",
        name=lock.name,
    )

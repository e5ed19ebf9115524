"""``@locks.job``: a decorator that lets one call of a function with the same arguments run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from lualock._core import options
from lualock._core.options import Seconds
from lualock.errors import InvalidArgument
from lualock.jobs import naming
from lualock.jobs.counterpart import locks_for
from lualock.jobs.declaration import (
    QUEUE_TTL_S,
    AnyLocks,
    Job,
    JobOptions,
    check_plain_function,
)
from lualock.jobs.job_adapter import JobAdapter
from lualock.jobs.run import refresh, run_job

if TYPE_CHECKING:
    from lualock import _sync as sync
    from lualock import aio

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class JobFunction(Protocol[P, R_co]):
    """A decorated function.

    A call returns the job's result; if the lock is held, ``None`` or what ``on_skipped`` returns.
    """

    __name__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None: ...

    def enqueued(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Return whether a job with these arguments is queued, with ``unique="queued"`` or
        ``"both"``."""

    def locked(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Return whether a run with these arguments holds the lock now."""

    def refresh_lock(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Give the lease of this run its whole ttl again."""

    def lock_for(self, *args: P.args, **kwargs: P.kwargs) -> sync.Lock:
        """Return the lock of a call with these arguments."""


class AsyncJobFunction(Protocol[P, R_co]):
    """A decorated coroutine function; see :class:`JobFunction`."""

    __name__: str
    __wrapped__: Callable[..., Any]

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None: ...

    async def enqueued(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...

    async def locked(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...

    async def refresh_lock(self, *args: P.args, **kwargs: P.kwargs) -> None: ...

    def lock_for(self, *args: P.args, **kwargs: P.kwargs) -> aio.Lock: ...


class Decorator(Protocol):
    """The decorator that ``locks.job(...)`` with options returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is a function too
        self, body: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncJobFunction[P, R]: ...
    @overload
    def __call__(self, body: Callable[P, R], /) -> JobFunction[P, R]: ...


class JobMaker:
    """The decorator ``locks.job``."""

    def __init__(self, locks: Any) -> None:
        self._locks: AnyLocks = locks

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is a function too
        self, body: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncJobFunction[P, R]: ...
    @overload
    def __call__(self, body: Callable[P, R], /) -> JobFunction[P, R]: ...
    @overload
    def __call__(
        self,
        body: None = None,
        /,
        *,
        ttl: Seconds | Callable[..., Seconds | None] | None = None,
        max_hold: Seconds | None = None,
        hold_at_least: Seconds | None = None,
        key: str | bytes | Callable[..., object] | None = None,
        on_skipped: Callable[..., Any] | None = None,
        on_expired: Callable[..., Any] | None = None,
        policy: Any = None,
        unique: str | None = None,
        on_enqueue_failed: Callable[..., Any] | None = None,
        keep_lock_on_retry: bool = False,
        keep_lock_on_failure: bool = False,
        when_unavailable: str = "raise",
        queue_ttl: Seconds = QUEUE_TTL_S,
        key_version: int = 0,
        previous_key: int | str | bytes | Callable[..., object] | None = None,
    ) -> Decorator: ...
    def __call__(
        self,
        body: Any = None,
        /,
        *,
        ttl: Seconds | Callable[..., Seconds | None] | None = None,
        max_hold: Seconds | None = None,
        hold_at_least: Seconds | None = None,
        key: str | bytes | Callable[..., object] | None = None,
        on_skipped: Callable[..., Any] | None = None,
        on_expired: Callable[..., Any] | None = None,
        policy: Any = None,
        unique: str | None = None,
        on_enqueue_failed: Callable[..., Any] | None = None,
        keep_lock_on_retry: bool = False,
        keep_lock_on_failure: bool = False,
        when_unavailable: str = "raise",
        queue_ttl: Seconds = QUEUE_TTL_S,
        key_version: int = 0,
        previous_key: int | str | bytes | Callable[..., object] | None = None,
        **unknown: Any,
    ) -> Any:
        """Let only one run of a function with the same arguments go on at a time.

        :param ttl: seconds after which the lease of a run expires, or a function of the job's
            arguments that returns them. Left out, the lease lasts 30 s and is renewed while the run
            lasts, so that it expires only after a crash.
        :param max_hold: for how many seconds that lease is renewed at most, so that a run that
            hangs loses its lock.
        :param hold_at_least: seconds from its begin for which the lock stays held after a run that
            ends sooner, without an error. So of several hosts that start a short job at almost the
            same time, only one runs it.
        :param key: the lock's name, instead of the function's name and arguments: a name, or a
            function of the job's arguments that returns one. If it returns another plain value,
            the name consists of that value and the function's name.
        :param on_skipped: called with exactly the job's arguments instead of the job if the lock is
            held; the call returns its result. A further parameter ``holder`` gets the holder.
        :param on_expired: called with exactly the job's arguments after the job, if the lease
            expired before it was released.
        :param policy: what to do if the lock is held, before ``on_skipped`` is called:
            ``jobs.Retry``, ``jobs.Wait``, ``jobs.Replace``, ``jobs.Coalesce``, or a function that
            gets a ``jobs.Contention`` and returns one of them, or ``None`` to give up.
        :param unique: when an integration refuses to enqueue a job: ``"queued"``, while another
            with the same lock is in the queue; ``"running"``, while one runs; or ``"both"``.
        :param on_enqueue_failed: called with exactly the job's arguments if the job was refused. A
            further parameter ``job_id`` gets the id of the conflicting job.
        :param keep_lock_on_retry: keep the lock for a job that failed while it waits for its
            system's retry. ``False`` releases it.
        :param keep_lock_on_failure: keep the lock of a job that failed and is not tried again, for
            ``queue_ttl``. ``False`` releases it.
        :param when_unavailable: what to do while the server of the locks is unreachable:
            ``"raise"``, ``"run"`` without the lock, or ``"skip"``, as if the lock were held.
        :param queue_ttl: for how many seconds at most, beyond any requested delay, a job that waits
            in a queue keeps its reservation or its lock.
        :param key_version: raise it when the meaning of the values in the name changes.
        :param previous_key: for the one deploy that changes the lock's name: the previous ``key``,
            or the previous ``key_version``. Both names are then locked.
        :raises InvalidArgument: one of these is not valid.
        """
        if unknown:
            raise options.unknown_parameter("locks.job", unknown)
        if body is None:
            return functools.partial(
                self.__call__,
                ttl=ttl,
                max_hold=max_hold,
                hold_at_least=hold_at_least,
                key=key,
                on_skipped=on_skipped,
                on_expired=on_expired,
                policy=policy,
                unique=unique,
                on_enqueue_failed=on_enqueue_failed,
                keep_lock_on_retry=keep_lock_on_retry,
                keep_lock_on_failure=keep_lock_on_failure,
                when_unavailable=when_unavailable,
                queue_ttl=queue_ttl,
                key_version=key_version,
                previous_key=previous_key,
            )
        _check_body(body, named=key is not None)
        for name, callback in (("on_skipped", on_skipped), ("on_expired", on_expired)):
            options.callback(callback, name)
        job = Job(
            naming.qualified_name(body),
            body,
            on_skipped=on_skipped,
            on_expired=on_expired,
            options=JobOptions(
                *(policy, unique, keep_lock_on_retry, keep_lock_on_failure, when_unavailable),
                *(queue_ttl, on_enqueue_failed, max_hold, hold_at_least),
            ),
        )
        job.check_callbacks()
        _set_names(job, key, key_version, previous_key)
        _set_ttl(job, ttl)
        return _decorated(job, self._locks)


def _check_body(body: Any, *, named: bool) -> None:
    """Check that ``locks.job`` can decorate this.

    :param named: whether the lock has a name that is not derived from the function's.
    :raises InvalidArgument: it cannot.
    """
    if isinstance(body, int | float | timedelta | str | bytes):
        word = "key" if isinstance(body, str | bytes) else "ttl"
        raise InvalidArgument(
            f"could not make a job of this {type(body).__name__}: locks.job decorates functions. "
            f"Write locks.job({word}={body!r})"
        )
    innermost = inspect.unwrap(body)  # a wrapper has a name also where the wrapped has none
    has_name = hasattr(innermost, "__qualname__") and hasattr(body, "__module__")
    if not callable(body) or isinstance(body, type) or not has_name:
        raise InvalidArgument(
            f"could not make a job of this {type(body).__name__}: locks.job decorates "
            "functions. Define a function that calls it"
        )
    if isinstance(body, staticmethod):
        raise InvalidArgument(
            "could not make a job of this staticmethod: @staticmethod goes above @locks.job. "
            "Swap the two"
        )
    if hasattr(body, "__lualock__"):
        raise InvalidArgument(
            f"could not make a job of {body.__qualname__}: it is a job already, so its own "
            "lock would refuse it. Use locks.job once"
        )
    if not named and (problem := _unnamed(body, innermost)) is not None:
        raise InvalidArgument(f"could not derive a lock name for {problem}, or pass key=")
    if not named:
        naming.check_closure(body, innermost)


def _unnamed(body: Any, innermost: Any) -> str | None:
    """Return why a function's name does not identify it; ``None``: it does."""
    if "<lambda>" in body.__qualname__:
        return "a lambda: it has no name. Use a named function"
    if inspect.ismethod(innermost):
        return (
            f"the bound method {innermost.__qualname__}: it has the same name for each object. "
            "Decorate a function that gets what identifies the object"
        )
    if not inspect.isroutine(body) or not inspect.isroutine(innermost):
        return (
            f"this {type(body if inspect.isroutine(innermost) else innermost).__name__}: others "
            f"have the name {body.__qualname__}, too. Decorate a function that calls it"
        )
    return None


def _set_names(job: Job, key: Any, version: int, previous: Any) -> None:
    """Set how the job names its lock, now and in the previous version."""
    job.check_callback("key", key)
    job.check_callback("previous_key", previous)
    job.lock_name, job.has_key = job.name_function(key, version), key is not None
    if isinstance(previous, int):
        job.previous_name = job.name_function(key, previous)
    elif previous is not None:
        job.previous_name = job.name_function(previous, 0, "previous_key")


def _set_ttl(job: Job, ttl: Any) -> None:
    """Set how long the lease of a run lasts: a constant, or a function of the job's arguments."""
    check_plain_function("ttl", ttl)
    job.check_callback("ttl", ttl)
    if options.is_function(ttl):
        job.ttl = functools.partial(naming.call_with_defaults, job.signature, ttl)
    elif ttl is not None:
        ttl_s = options.ttl_ms(ttl) / 1000
        options.max_hold_s(job.options.max_hold, renewed=False)
        job.ttl = lambda *args, **kwargs: ttl_s


def _decorated(job: Job, locks: AnyLocks) -> Any:
    def job_locks() -> AnyLocks:
        return locks_for(locks, asynchronous=job.asynchronous)

    if job.asynchronous:
        # Frameworks that check for a coroutine function must find one.
        @functools.wraps(job.body)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await run_job(job, job_locks(), args, kwargs)

        call: Any = call_async
    else:

        @functools.wraps(job.body)
        def call_plain(*args: Any, **kwargs: Any) -> Any:
            return run_job(job, job_locks(), args, kwargs)

        call = call_plain

    call.__lualock__ = adapter = JobAdapter(job, lambda: locks)
    call.enqueued = lambda *args, **kwargs: adapter.reservation(args, kwargs).locked()
    call.lock_for = lambda *args, **kwargs: job.lock(job_locks(), args, kwargs)
    call.locked = lambda *args, **kwargs: job.lock(job_locks(), args, kwargs).locked()
    call.refresh_lock = lambda *args, **kwargs: refresh(job, job_locks(), args, kwargs)
    return call

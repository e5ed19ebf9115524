"""``@locks.job``: a function of which one call at a time runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from lualock._core import options
from lualock.errors import InvalidArgument
from lualock.jobs import arguments, run
from lualock.jobs.bound import JobAdapter
from lualock.jobs.counterpart import fitting
from lualock.jobs.job import AnyLocks, Job, plain
from lualock.jobs.terms import QUEUE_TTL_S, Rules

if TYPE_CHECKING:
    from lualock import _sync as sync
    from lualock import aio

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class JobFunction(Protocol[P, R_co]):
    """A decorated function: called as before, ``None`` (or what ``on_failed`` returns) if held."""

    __name__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None: ...

    def locked(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether a run with these arguments holds the lock now."""

    def refresh_lock(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """From inside the run: give its lease the whole timeout again. See :func:`run.refresh`."""

    def lock_for(self, *args: P.args, **kwargs: P.kwargs) -> sync.Lock:
        """The lock of a call with these arguments."""


class AsyncJobFunction(Protocol[P, R_co]):
    """A decorated coroutine function; see :class:`JobFunction`."""

    __name__: str
    __wrapped__: Callable[..., Any]

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None: ...

    async def locked(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...

    async def refresh_lock(self, *args: P.args, **kwargs: P.kwargs) -> None: ...

    def lock_for(self, *args: P.args, **kwargs: P.kwargs) -> aio.Lock: ...


class Decorator(Protocol):
    """What ``locks.job(...)`` with options returns."""

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
        timeout: float | Callable[..., float | None] | None = None,
        key: str | bytes | Callable[..., object] | None = None,
        on_failed: Callable[..., Any] | None = None,
        on_expired: Callable[..., Any] | None = None,
        policy: Any = None,
        unique: str | None = None,
        on_enqueue_failed: Callable[..., Any] | None = None,
        on_retry: str = "release",
        on_final_failure: str = "release",
        on_unavailable: str = "raise",
        queue_ttl: float = QUEUE_TTL_S,
        key_version: int = 0,
        read_old: int | str | bytes | Callable[..., object] | None = None,
    ) -> Decorator: ...
    def __call__(
        self,
        body: Any = None,
        /,
        *,
        timeout: float | Callable[..., float | None] | None = None,
        key: str | bytes | Callable[..., object] | None = None,
        on_failed: Callable[..., Any] | None = None,
        on_expired: Callable[..., Any] | None = None,
        policy: Any = None,
        unique: str | None = None,
        on_enqueue_failed: Callable[..., Any] | None = None,
        on_retry: str = "release",
        on_final_failure: str = "release",
        on_unavailable: str = "raise",
        queue_ttl: float = QUEUE_TTL_S,
        key_version: int = 0,
        read_old: int | str | bytes | Callable[..., object] | None = None,
    ) -> Any:
        """Let only one run of a function with the same arguments go on at a time.

        :param timeout: seconds after which a run is given up for dead and the lock is free again,
            or a function of the job's arguments that says so. Left out, the lease is 30 s and
            renewed for as long as the run lasts, so that only a crash frees it.
        :param key: what the lock is called instead of the function's name and arguments: a name,
            or a function of the job's arguments that returns one (or any plain value, which is
            then told apart together with the function's name).
        :param on_failed: called with exactly the job's arguments instead of the job when the lock
            is held; its result is the call's. A further parameter ``holder`` gets who has it.
        :param on_expired: called with exactly the job's arguments after the job, when the lease
            had ended before it was released.
        :param policy: what to do when the lock is held, before ``on_failed`` is called:
            ``jobs.Retry``, ``jobs.Wait``, ``jobs.Replace``, ``jobs.Coalesce``, or a function that
            gets a ``jobs.Contention`` and returns one of them, or ``None`` to give up.
        :param unique: when a job is not put into a queue by an integration: ``"queued"``, while
            another with the same lock is in it; ``"running"``, while one runs; or ``"both"``.
        :param on_enqueue_failed: called with exactly the job's arguments when it was not. A further
            parameter ``job_id`` gets the id of the other one.
        :param on_retry: what becomes of the lock while a job that failed waits for its system to
            try it again: ``"release"``, or ``"hold"``: kept for it.
        :param on_final_failure: the same for a job that failed and is not tried again: ``"keep"``
            keeps its lock, for ``queue_ttl``.
        :param on_unavailable: what to do while the server of the locks cannot be reached:
            ``"raise"``, ``"run"`` without the lock, or ``"skip"``, as if the lock were held.
        :param queue_ttl: for how many seconds, beyond any delay that was asked for, a job that
            waits in a queue keeps its place or its lock at the most.
        :param key_version: raise it when what the name is made of changes its meaning.
        :param read_old: for the one deploy that changes the lock's name: how it was made before, as
            for ``key``, or the ``key_version`` before. Both names are then locked.
        :raises InvalidArgument: one of these cannot be used.
        """
        if body is None:
            return functools.partial(
                self.__call__,
                timeout=timeout,
                key=key,
                on_failed=on_failed,
                on_expired=on_expired,
                policy=policy,
                unique=unique,
                on_enqueue_failed=on_enqueue_failed,
                on_retry=on_retry,
                on_final_failure=on_final_failure,
                on_unavailable=on_unavailable,
                queue_ttl=queue_ttl,
                key_version=key_version,
                read_old=read_old,
            )
        named = hasattr(body, "__qualname__") and hasattr(body, "__module__")
        if not callable(body) or isinstance(body, type) or not named:
            raise InvalidArgument(
                f"locks.job decorates functions, not {type(body).__name__}: define a function "
                "that calls it"
            )
        if isinstance(body, staticmethod):
            raise InvalidArgument("@staticmethod goes above @locks.job, not below it")
        if hasattr(body, "__lualock__"):
            raise InvalidArgument(
                f"{body.__qualname__} is a job already: the second lock would be the first one's, "
                "and refuse it"
            )
        if key is None and "<lambda>" in body.__qualname__:
            raise InvalidArgument(
                "cannot derive a lock name for a lambda: use a named function or pass key="
            )
        for what, callback in (("on_failed", on_failed), ("on_expired", on_expired)):
            if callback is not None and not callable(callback):
                raise InvalidArgument(f"{what} must be a function, not {type(callback).__name__}")
        job = Job(
            arguments.qualified_name(body),
            body,
            on_failed=on_failed,
            on_expired=on_expired,
            rules=Rules(
                policy,
                unique,
                on_retry,
                on_final_failure,
                on_unavailable,
                queue_ttl,
                on_enqueue_failed,
            ),
        )
        job.lock_name = job.naming(key, key_version)
        if isinstance(read_old, int):
            job.old_name = job.naming(key, read_old)
        elif read_old is not None:
            job.old_name = job.naming(read_old, 0, "read_old")
        plain("timeout", timeout)
        if callable(timeout):
            job.timeout = timeout
        elif timeout is not None:
            options.ttl_ms(timeout, "timeout")
            job.timeout = _always(timeout)
        return _wrapped(job, self._locks)


def _always(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _wrapped(job: Job, locks: AnyLocks) -> Any:
    def own() -> AnyLocks:
        return fitting(locks, asynchronous=job.asynchronous)

    if job.asynchronous:
        # A coroutine function to the eye of every framework that asks.
        @functools.wraps(job.body)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await run.start(job, own(), args, kwargs)

        call: Any = call_async
    else:

        @functools.wraps(job.body)
        def call_plain(*args: Any, **kwargs: Any) -> Any:
            return run.start(job, own(), args, kwargs)

        call = call_plain

    call.__lualock__ = JobAdapter(job, lambda: locks)
    call.lock_for = lambda *args, **kwargs: job.lock(own(), args, kwargs)
    call.locked = lambda *args, **kwargs: job.lock(own(), args, kwargs).locked()
    call.refresh_lock = lambda *args, **kwargs: run.refresh(job, own(), args, kwargs)
    return call

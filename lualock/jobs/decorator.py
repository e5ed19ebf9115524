"""``@locks.job``: a function of which one call at a time runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from lualock import aio, options, sync
from lualock.errors import InvalidArgument
from lualock.jobs import arguments, run
from lualock.jobs.run import AnyLocks, Job
from lualock.jobs.twins import fitting

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
        :raises InvalidArgument: one of these cannot be used.
        """
        if body is None:
            return functools.partial(
                self.__call__, timeout=timeout, key=key, on_failed=on_failed, on_expired=on_expired
            )
        if not callable(body) or isinstance(body, type) or not hasattr(body, "__qualname__"):
            raise InvalidArgument(
                f"locks.job decorates functions, not {type(body).__name__}: define a function "
                "that calls it"
            )
        if key is None and "<lambda>" in body.__qualname__:
            raise InvalidArgument(
                "a lambda has no name to make its lock's name of, and would share it with every "
                "other: define a function, or say key="
            )
        for what, callback in (("on_failed", on_failed), ("on_expired", on_expired)):
            if callback is not None and not callable(callback):
                raise InvalidArgument(f"{what} must be a function, not {type(callback).__name__}")
        job = Job(
            arguments.qualified_name(body),
            body,
            _no_name,
            on_failed=on_failed,
            on_expired=on_expired,
        )
        job.lock_name = _lock_name(job, key)
        if callable(timeout):
            job.timeout = timeout
        elif timeout is not None:
            options.ttl_ms(timeout, "timeout")
            job.timeout = _always(timeout)
        return _wrapped(job, self._locks)


def _no_name(*args: Any, **kwargs: Any) -> str:
    raise NotImplementedError


def _always(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _lock_name(
    job: Job, key: str | bytes | Callable[..., object] | None
) -> Callable[..., str | bytes]:
    if key is None:
        return job.default_name
    if isinstance(key, str | bytes):
        return _always(key)
    if not callable(key):
        raise InvalidArgument(
            f"key must be a name or a function of the job's arguments, not {type(key).__name__}"
        )

    def made(*args: Any, **kwargs: Any) -> str | bytes:
        value = key(*args, **kwargs)
        if isinstance(value, str | bytes):
            return value
        return arguments.lock_name(job.name, {"(the result of key=)": value})

    return made


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

    call.lock_for = lambda *args, **kwargs: job.lock(own(), args, kwargs)
    call.locked = lambda *args, **kwargs: job.lock(own(), args, kwargs).locked()
    call.refresh_lock = lambda *args, **kwargs: run.refresh(job, own(), args, kwargs)
    return call

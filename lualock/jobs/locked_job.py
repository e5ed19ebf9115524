"""``LockedJob``: declare a job as a class, in the manner of Ruby's resque-lock."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar

from lualock._core import options
from lualock._core.options import Seconds
from lualock.errors import InvalidArgument
from lualock.jobs import naming
from lualock.jobs.counterpart import default_locks, locks_for
from lualock.jobs.declaration import (
    QUEUE_TTL_S,
    AnyLock,
    AnyLocks,
    Job,
    JobOptions,
    check_plain_function,
    check_version,
)
from lualock.jobs.job_adapter import JobAdapter
from lualock.jobs.run import refresh, run_job

# The names of settings begin so. Another name that does is misspelt.
_SETTING_PREFIXES = "lock_", "loner"
_OF_THE_DECORATOR = {
    "keep_lock_on_failure": "lock_keep_on_failure",
    "keep_lock_on_retry": "lock_keep_on_retry",
    "key": "lock",
    "key_version": "lock_key_version",
    "hold_at_least": "lock_hold_at_least",
    "max_hold": "lock_max_hold",
    "on_enqueue_failed": "loner_enqueue_failed",
    "on_expired": "lock_expired_before_release",
    "on_skipped": "lock_failed",
    "policy": "lock_policy",
    "previous_key": "lock_previous_key",
    "queue_ttl": "lock_queue_ttl",
    "ttl": "lock_timeout",
    "unique": "lock_unique",
    "when_unavailable": "lock_when_unavailable",
}
"""What the parameters of ``locks.job`` are called in a class."""

_OF_RESQUE = {
    "acquire_lock": "lock_for(...).acquire",
    "lock_enqueue": "lock_unique",
    "lock_redis": "locks",
    "lock_running": "lock_unique",
    "lock_workers": "lock",
    "redis_lock_key": "lock",
    "redis_loner_lock_key": "lock",
    "release_lock": "lock_for(...).acquire",
}
"""What stands here for a name of resque-lock-timeout, resque-loner or resque-workers-lock."""


_ELSEWHERE = _OF_THE_DECORATOR | _OF_RESQUE


class LockedJob:
    """A job of which only one run with the same arguments goes on at a time.

    A subclass defines ``perform`` as a classmethod (plain or ``async``); ``Job.run(...)`` runs it.
    Everything else is optional, and inherited::

        class UpdateNetworkGraph(lualock.LockedJob):
            lock_timeout = 3600

            @classmethod
            def lock_failed(cls, repo_id, *, holder): ...

            @classmethod
            def perform(cls, repo_id): ...

    A subclass may define three callbacks as classmethods. They get exactly the job's arguments.

    * ``lock_failed`` is called instead of the job if the lock is held, and ``run`` returns its
      result. A further parameter ``holder`` gets the holder.
    * ``lock_expired_before_release`` is called after the job if the lease expired before it was
      released.
    * ``loner_enqueue_failed`` is called if an integration did not enqueue the job because of
      :attr:`loner` or :attr:`lock_unique`. A further parameter ``job_id`` gets the id of the
      conflicting job.
    """

    locks: ClassVar[AnyLocks | None] = None
    """The locks to use; ``None``: those of ``lualock.connect()`` without arguments."""

    lock_timeout: ClassVar[Seconds | Callable[..., Seconds | None] | None] = None
    """Seconds after which the lease of a run expires, or a classmethod that returns them.

    The classmethod gets the job's arguments. ``None``: the lease lasts 30 s and is renewed while
    the run lasts.
    """

    lock_failed: ClassVar[Callable[..., Any] | None] = None
    lock_expired_before_release: ClassVar[Callable[..., Any] | None] = None
    loner_enqueue_failed: ClassVar[Callable[..., Any] | None] = None

    loner: ClassVar[bool] = False
    """Refuse to enqueue a job while one with the same lock is queued or runs, as in resque-lock.

    The same as ``lock_unique = "both"``. If the class also has a ``lock_unique``, only that counts.
    """

    # The same as the parameters of `locks.job`: `keep_lock_on_retry` is `lock_keep_on_retry` here,
    # and the others have `lock_` before their names.
    lock_policy: ClassVar[Any] = None
    lock_unique: ClassVar[str | None] = None
    lock_keep_on_retry: ClassVar[bool] = False
    lock_keep_on_failure: ClassVar[bool] = False
    lock_when_unavailable: ClassVar[str] = "raise"
    lock_queue_ttl: ClassVar[Seconds] = QUEUE_TTL_S
    lock_max_hold: ClassVar[Seconds | None] = None
    lock_hold_at_least: ClassVar[Seconds | None] = None
    lock_key_version: ClassVar[int] = 0
    lock_previous_key: ClassVar[int | str | bytes | Callable[..., object] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_spelling(cls)
        for name in (
            "perform",
            "lock",
            "identifier",
            "lock_timeout",
            "lock_failed",
            "lock_expired_before_release",
            "loner_enqueue_failed",
        ):
            if inspect.isfunction(inspect.getattr_static(cls, name, None)):
                raise InvalidArgument(
                    f"{cls.__qualname__}.{name} must be a classmethod (or a staticmethod), because "
                    "a job runs without an instance"
                )

        _check_kinds(cls)
        if cls.lock_timeout is not None and not options.is_function(cls.lock_timeout):
            options.ttl_ms(cls.lock_timeout, f"{cls.__qualname__}.lock_timeout")
            options.max_hold_s(cls.lock_max_hold, renewed=False)
        for name in ("lock", "identifier", "lock_timeout", "lock_previous_key"):
            check_plain_function(f"{cls.__qualname__}.{name}", getattr(cls, name))
        check_version(cls.lock_key_version, f"{cls.__qualname__}.lock_key_version")
        previous = cls.lock_previous_key
        if isinstance(previous, int):
            check_version(previous, f"{cls.__qualname__}.lock_previous_key")
        elif not (
            previous is None or isinstance(previous, str | bytes) or options.is_function(previous)
        ):
            raise InvalidArgument(
                f"{cls.__qualname__}.lock_previous_key must be a name, a function of the job's "
                f"arguments, or a version, not {type(previous).__name__}"
            )
        cls._job_options()
        if hasattr(cls, "perform"):
            cls._new_job()  # raises what is wrong with it
            derived = inspect.getattr_static(cls, "lock") is vars(LockedJob)["lock"]
            if "perform" in vars(cls) and derived and cls.identifier is None:
                naming.check_closure(cls, inspect.unwrap(cls.perform))

    perform: ClassVar[Callable[..., Any]]
    """The work. A subclass defines it."""

    identifier: ClassVar[Callable[..., Any] | None] = None
    """A classmethod of the job's arguments that returns what identifies the lock, a plain value.

    ``None``: all arguments identify it.
    """

    @classmethod
    def lock(cls, /, *args: Any, **kwargs: Any) -> str | bytes:
        """Return the lock's name: the class's name, :attr:`identifier`, and the version."""
        return cls._derived(cls.lock_key_version, *args, **kwargs)

    @classmethod
    def _derived(cls, version: int, /, *args: Any, **kwargs: Any) -> str:
        if cls.identifier is None:
            arguments = naming.bind_arguments(inspect.signature(cls.perform), args, kwargs)
        else:
            arguments = {"(the result of identifier)": cls._call(cls.identifier, *args, **kwargs)}
        return naming.lock_name(naming.qualified_name(cls), arguments, version)

    @classmethod
    def _previous_name(cls, /, *args: Any, **kwargs: Any) -> object:
        previous = cls.lock_previous_key
        if isinstance(previous, int):
            return cls._derived(previous, *args, **kwargs)
        return cls._call(previous, *args, **kwargs) if callable(previous) else previous

    @classmethod
    def _job_options(cls) -> JobOptions:
        return JobOptions(
            cls.lock_policy,
            cls.lock_unique or ("both" if cls.loner else None),
            cls.lock_keep_on_retry,
            cls.lock_keep_on_failure,
            cls.lock_when_unavailable,
            cls.lock_queue_ttl,
            cls.loner_enqueue_failed,
            cls.lock_max_hold,
            cls.lock_hold_at_least,
        )

    @classmethod
    def _job(cls) -> Job:
        if "_cached_job" not in vars(cls):
            if not hasattr(cls, "perform"):
                raise InvalidArgument(
                    f"could not use {cls.__qualname__} as a job: it has no perform. Define it as a "
                    "classmethod"
                )
            cls._cached_job = cls._new_job()
        job: Job = cls._cached_job
        return job

    @classmethod
    def _new_job(cls) -> Job:
        return Job(
            naming.qualified_name(cls),
            cls.perform,
            cls._name,
            cls._lock_ttl,
            cls.lock_failed,
            cls.lock_expired_before_release,
            cls._job_options(),
            None if cls.lock_previous_key is None else cls._previous_name,
        )

    _cached_job: ClassVar[Job]

    @classmethod
    def __lualock__(cls) -> JobAdapter:
        return JobAdapter(cls._job(), lambda: cls.locks or default_locks())

    @classmethod
    def _lock_ttl(cls, /, *args: Any, **kwargs: Any) -> Seconds | None:
        ttl = cls.lock_timeout
        return cls._call(ttl, *args, **kwargs) if callable(ttl) else ttl

    @classmethod
    def _call(cls, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function with the job's arguments and the defaults of ``perform``."""
        signature = inspect.signature(cls.perform)
        return naming.call_with_defaults(signature, function, *args, **kwargs)

    @classmethod
    def _name(cls, /, *args: Any, **kwargs: Any) -> Any:
        return cls._call(cls.lock, *args, **kwargs)

    @classmethod
    def _locks(cls) -> AnyLocks:
        return locks_for(cls.locks or default_locks(), asynchronous=cls._job().asynchronous)

    @classmethod
    def run(cls, /, *args: Any, **kwargs: Any) -> Any:
        """Run the job with these arguments unless its lock is held; await it if it is ``async``.

        :raises InvalidArgument: the arguments give no valid lock name, or no valid ttl.
        :raises LockUnavailable: the server is unreachable, so the job did not run.
        """
        return run_job(cls._job(), cls._locks(), args, kwargs)

    @classmethod
    def lock_for(cls, /, *args: Any, **kwargs: Any) -> AnyLock:
        """Return the lock of a run with these arguments."""
        return cls._job().lock(cls._locks(), args, kwargs)

    @classmethod
    def enqueued(cls, /, *args: Any, **kwargs: Any) -> Any:
        """Return whether a job with these arguments is queued; await it if async.

        Only a class with :attr:`loner`, or :attr:`lock_unique` other than ``"running"``, knows.
        """
        return cls.__lualock__().reservation(args, kwargs).locked()

    @classmethod
    def locked(cls, /, *args: Any, **kwargs: Any) -> Any:
        """Return whether a run with these arguments holds the lock; await it if async."""
        return cls.lock_for(*args, **kwargs).locked()

    @classmethod
    def refresh_lock(cls, /, *args: Any, **kwargs: Any) -> Any:
        """Give the lease of this run its whole ttl again; await it if async.

        ``lock_expired_before_release`` is then about the new end of the lease.

        :raises LeaseLost: this code is not part of such a run, or its lease has ended.
        """
        return refresh(cls._job(), cls._locks(), args, kwargs)


def _check_spelling(cls: type[LockedJob]) -> None:
    """Refuse a misspelt setting, because Python ignores it and the job runs without it."""
    known = [name for name in dir(LockedJob) if name.startswith(_SETTING_PREFIXES)]
    mixins = [base for base in cls.__mro__[1:] if not issubclass(base, LockedJob)]
    for name in (*vars(cls), *chain.from_iterable(map(vars, mixins))):
        near = _ELSEWHERE.get(name) if name in vars(cls) else None
        if near is None and name.startswith(_SETTING_PREFIXES) and name not in known:
            near = next(iter(difflib.get_close_matches(name, known, 1, cutoff=0.8)), "")
        if near is not None:
            advice = f"Did you mean {near}?" if near else "Choose another name"
            raise InvalidArgument(
                f"could not use {cls.__qualname__}.{name}: it is not a setting of a LockedJob "
                f"(names that begin with {' or '.join(_SETTING_PREFIXES)} are). {advice}"
            )


def _check_kinds(cls: type[LockedJob]) -> None:
    """Refuse members of the wrong type here, not only in the first run or when it fails."""
    name = cls.__qualname__
    if not options.is_function(cls.lock):
        raise InvalidArgument(
            f"{name}.lock must be a classmethod that returns the lock's name, not {cls.lock!r}"
        )
    callbacks = "lock_failed", "lock_expired_before_release", "loner_enqueue_failed"
    for member in ("identifier", *callbacks):
        options.callback(getattr(cls, member), f"{name}.{member}")
    for flag in ("loner", "lock_keep_on_retry", "lock_keep_on_failure"):
        options.flag(getattr(cls, flag), f"{name}.{flag}")
    locks = inspect.getattr_static(cls, "locks")
    made_later = hasattr(type(locks), "__get__") and not callable(locks)
    if not (locks is None or made_later or isinstance(locks, AnyLocks)):
        raise InvalidArgument(
            f"{name}.locks must be what lualock.connect() or lualock.aio.connect() returns, or "
            f"None, not {type(locks).__name__}"
        )

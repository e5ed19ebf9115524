"""``LockedJob``: a job as a class, in the manner of Ruby's resque-lock."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from lualock._core import options
from lualock.errors import InvalidArgument
from lualock.jobs import arguments, run
from lualock.jobs.bound import JobAdapter
from lualock.jobs.counterpart import default_locks, fitting
from lualock.jobs.job import AnyLock, AnyLocks, Job, check_version, plain
from lualock.jobs.terms import QUEUE_TTL_S, Rules

# How the settings of a class begin; others of these names are misspelt.
_OURS = "lock_", "loner"


class LockedJob:
    """A job of which one run with the same arguments goes on at a time.

    A subclass defines ``perform`` as a classmethod (plain or ``async``) and is run with
    ``Job.run(...)``. Everything else is optional, and inherited::

        class UpdateNetworkGraph(lualock.LockedJob):
            lock_timeout = 3600

            @classmethod
            def lock_failed(cls, repo_id, *, holder): ...

            @classmethod
            def perform(cls, repo_id): ...

    ``lock_failed`` and ``lock_expired_before_release``, where a subclass defines them as
    classmethods, are called with exactly the job's arguments: the first instead of the job when
    the lock is held (its result is then that of ``run``; a further parameter ``holder`` gets who
    has it), the second after the job when the lease had ended before it was released.
    ``loner_enqueue_failed`` is called, likewise, when an integration did not put the job into its
    queue because of :attr:`loner` or :attr:`lock_unique`; a further parameter ``job_id`` gets the
    other job's id.
    """

    locks: ClassVar[AnyLocks | None] = None
    """Where the locks are; ``None``: :func:`lualock.connect` with nothing configured."""

    lock_timeout: ClassVar[float | Callable[..., float | None] | None] = None
    """Seconds after which a run is given up for dead, or a classmethod of the job's arguments that
    says so. ``None``: the lease is 30 s and renewed for as long as the run lasts."""

    lock_failed: ClassVar[Callable[..., Any] | None] = None
    lock_expired_before_release: ClassVar[Callable[..., Any] | None] = None
    loner_enqueue_failed: ClassVar[Callable[..., Any] | None] = None

    loner: ClassVar[bool] = False
    """Refuse to enqueue a job while one with the same lock is queued or runs, as in resque-lock.

    The same as ``lock_unique = "both"``; a ``lock_unique`` of the class counts instead of it.
    """

    # The same as the parameters of ``locks.job`` of these names.
    lock_policy: ClassVar[Any] = None
    lock_unique: ClassVar[str | None] = None
    lock_on_retry: ClassVar[str] = "release"
    lock_on_final_failure: ClassVar[str] = "release"
    lock_on_unavailable: ClassVar[str] = "raise"
    lock_queue_ttl: ClassVar[float] = QUEUE_TTL_S
    lock_key_version: ClassVar[int] = 0
    lock_read_old: ClassVar[int | str | bytes | Callable[..., object] | None] = None

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
                    f"{cls.__qualname__}.{name} must be a classmethod (or a staticmethod): a job "
                    "is run without an instance"
                )

        _check_kinds(cls)
        if cls.lock_timeout is not None and not callable(cls.lock_timeout):
            options.ttl_ms(cls.lock_timeout, f"{cls.__qualname__}.lock_timeout")
        for name in ("lock", "identifier", "lock_timeout", "lock_read_old"):
            plain(f"{cls.__qualname__}.{name}", getattr(cls, name))
        check_version(cls.lock_key_version, f"{cls.__qualname__}.lock_key_version")
        old = cls.lock_read_old
        if not (old is None or isinstance(old, str | bytes) or callable(old)):
            check_version(old, f"{cls.__qualname__}.lock_read_old")
        cls._rules()
        if hasattr(cls, "perform"):
            cls._new_job()  # and nothing is wrong with it

    perform: ClassVar[Callable[..., Any]]
    """The work. A subclass defines it."""

    identifier: ClassVar[Callable[..., Any] | None] = None
    """A classmethod of the job's arguments: what tells the locks of this class apart, any plain
    value. ``None``: all arguments."""

    @classmethod
    def lock(cls, /, *args: Any, **kwargs: Any) -> str | bytes:
        """The lock's name. Default: the class's name, :attr:`identifier`, and the version."""
        return cls._derived(cls.lock_key_version, *args, **kwargs)

    @classmethod
    def _derived(cls, version: int, /, *args: Any, **kwargs: Any) -> str:
        if cls.identifier is None:
            told = arguments.bind(inspect.signature(cls.perform), args, kwargs)
        else:
            told = {"(the result of identifier)": cls.identifier(*args, **kwargs)}
        return arguments.lock_name(arguments.qualified_name(cls), told, version)

    @classmethod
    def _old_name(cls, /, *args: Any, **kwargs: Any) -> object:
        old = cls.lock_read_old
        if isinstance(old, int):
            return cls._derived(old, *args, **kwargs)
        return old(*args, **kwargs) if callable(old) else old

    @classmethod
    def _rules(cls) -> Rules:
        return Rules(
            cls.lock_policy,
            cls.lock_unique or ("both" if cls.loner else None),
            cls.lock_on_retry,
            cls.lock_on_final_failure,
            cls.lock_on_unavailable,
            cls.lock_queue_ttl,
            cls.loner_enqueue_failed,
        )

    @classmethod
    def _job(cls) -> Job:
        if "_made" not in vars(cls):
            if not hasattr(cls, "perform"):
                raise InvalidArgument(f"{cls.__qualname__} has no perform")
            cls._made = cls._new_job()
        made: Job = cls._made
        return made

    @classmethod
    def _new_job(cls) -> Job:
        return Job(
            arguments.qualified_name(cls),
            cls.perform,
            cls.lock,
            cls._timeout,
            cls.lock_failed,
            cls.lock_expired_before_release,
            cls._rules(),
            None if cls.lock_read_old is None else cls._old_name,
        )

    _made: ClassVar[Job]

    @classmethod
    def __lualock__(cls) -> JobAdapter:
        return JobAdapter(cls._job(), lambda: cls.locks or default_locks())

    @classmethod
    def _timeout(cls, /, *args: Any, **kwargs: Any) -> float | None:
        told = cls.lock_timeout
        return told(*args, **kwargs) if callable(told) else told

    @classmethod
    def _locks(cls) -> AnyLocks:
        return fitting(cls.locks or default_locks(), asynchronous=cls._job().asynchronous)

    @classmethod
    def run(cls, /, *args: Any, **kwargs: Any) -> Any:
        """Run the job with these arguments unless its lock is held; await it if it is ``async``.

        :raises InvalidArgument: no lock's name, or no ttl, can be made of the arguments.
        :raises LockUnavailable: the server cannot be reached, so it was not run.
        """
        return run.start(cls._job(), cls._locks(), args, kwargs)

    @classmethod
    def lock_for(cls, /, *args: Any, **kwargs: Any) -> AnyLock:
        """The lock of a run with these arguments."""
        return cls._job().lock(cls._locks(), args, kwargs)

    @classmethod
    def locked(cls, /, *args: Any, **kwargs: Any) -> Any:
        """Whether a run with these arguments holds the lock now; await it if the job is async."""
        return cls.lock_for(*args, **kwargs).locked()

    @classmethod
    def refresh_lock(cls, /, *args: Any, **kwargs: Any) -> Any:
        """From inside the run: give its lease the whole timeout again; await it if async.

        The run then counts as refreshed: ``lock_expired_before_release`` is about the new end.

        :raises LeaseLost: this code is part of no such run, or its lease has ended.
        """
        return run.refresh(cls._job(), cls._locks(), args, kwargs)


def _check_spelling(cls: type[LockedJob]) -> None:
    """A setting that is misspelt would be ignored, and the job run as if it were not there."""
    known = [name for name in dir(LockedJob) if name.startswith(_OURS)]
    for name in vars(cls):
        if name.startswith(_OURS) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f": did you mean {near[0]}?" if near else ""
            raise InvalidArgument(
                f"{cls.__qualname__}.{name} is no setting of a LockedJob{meant} (names that begin "
                f"with {' or '.join(_OURS)} are lualock's)"
            )


def _check_kinds(cls: type[LockedJob]) -> None:
    """What is of the wrong kind would be found out by the first run, or when it fails."""
    name = cls.__qualname__
    if not callable(cls.lock):
        raise InvalidArgument(
            f"{name}.lock must be a classmethod that returns the lock's name, not {cls.lock!r}"
        )
    callbacks = "lock_failed", "lock_expired_before_release", "loner_enqueue_failed"
    for member in ("identifier", *callbacks):
        options.callback(getattr(cls, member), f"{name}.{member}")
    options.flag(cls.loner, f"{name}.loner")
    locks = inspect.getattr_static(cls, "locks")
    made_later = hasattr(type(locks), "__get__") and not callable(locks)
    if not (locks is None or made_later or isinstance(locks, AnyLocks)):
        raise InvalidArgument(
            f"{name}.locks must be what lualock.connect() or lualock.aio.connect() returns, or "
            f"None, not {type(locks).__name__}"
        )

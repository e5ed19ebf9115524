"""Define a job as ``locks.job`` and ``LockedJob`` declare it: its options, locks and callbacks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lualock._core import options
from lualock._core.decorating import is_generator_function, is_kind
from lualock._core.lease import LeaseBase
from lualock._core.lock import LockBase, LocksBase
from lualock._core.options import Seconds
from lualock.errors import InvalidArgument
from lualock.jobs import naming
from lualock.jobs.identity import job_metadata

if TYPE_CHECKING:
    from lualock import _sync, aio

    AnyLocks = _sync.Locks | aio.Locks
    AnyLease = _sync.Lease | aio.Lease
    AnyLock = _sync.Lock | aio.Lock
else:  # both APIs are above this layer, and load it on first use
    AnyLocks, AnyLease, AnyLock = LocksBase, LeaseBase, LockBase

log = logging.getLogger("lualock.jobs")

QUEUE_TTL_S = 3600.0
"""How long a queued job keeps its reservation or its lock, unless its declaration says more."""


@dataclass(frozen=True)
class JobOptions:
    """The options of ``locks.job`` beyond the lock's name, its ttl and the callbacks of a run."""

    policy: Any = None
    unique: str | None = None
    keep_lock_on_retry: bool = False
    keep_lock_on_failure: bool = False
    when_unavailable: str = "raise"
    queue_ttl: Seconds = QUEUE_TTL_S
    queue_ttl_s: float = field(init=False)
    on_enqueue_failed: Callable[..., Any] | None = field(default=None, compare=False)
    max_hold: Seconds | None = None
    hold_at_least: Seconds | None = None

    def __post_init__(self) -> None:
        _check_choice("unique", self.unique, None, "queued", "running", "both")
        options.flag(self.keep_lock_on_retry, "keep_lock_on_retry")
        options.flag(self.keep_lock_on_failure, "keep_lock_on_failure")
        _check_choice("when_unavailable", self.when_unavailable, "raise", "run", "skip")
        queue_ttl_s = options.ttl_ms(self.queue_ttl, "queue_ttl") / 1000
        object.__setattr__(self, "queue_ttl_s", queue_ttl_s)  # the class is frozen
        options.callback(self.on_enqueue_failed, "on_enqueue_failed")
        max_hold_s = options.max_hold_s(self.max_hold, renewed=True)
        options.hold_at_least_s(self.hold_at_least, max_hold_s)
        check_policy(self.policy)

    @property
    def reserves(self) -> bool:
        """Whether a queued job holds a reservation."""
        return self.unique in ("queued", "both")

    @property
    def keeps(self) -> bool:
        """Whether a job holds something before its run begins, or between two of its runs."""
        return self.reserves or self.keep_lock_on_retry or self.policy is not None


def _check_choice(name: str, value: object, *choices: object) -> None:
    if value not in choices:
        raise InvalidArgument(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")


def check_policy(policy: Any) -> None:
    """Check that a value is a policy.

    :raises InvalidArgument: it is not.
    """
    possible = hasattr(policy, "take") or options.is_function(policy) or policy is None
    if inspect.iscoroutine(policy):  # a callable returned it, and nothing will await it
        policy.close()
    if options.is_function(policy) and not _accepts(policy, None):
        raise InvalidArgument(
            "the function for policy= must have one parameter, for the jobs.Contention: it has "
            f"the parameters {inspect.signature(policy)}"
        )
    if not possible or isinstance(policy, type) or inspect.iscoroutinefunction(policy):
        raise InvalidArgument(
            "a policy must be one of lualock.jobs, such as jobs.Wait(5), or a plain function that "
            f"returns one, not {policy!r}"
        )


def _accepts(function: Any, *args: Any, **kwargs: Any) -> bool:
    """Return whether a function can be called so, as far as its signature says."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # it has none
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def check_version(version: object, name: str) -> None:
    """Check a version of a lock's name.

    :raises InvalidArgument: it is not an int, or is negative.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise InvalidArgument(f"{name} must be an int of at least 0, not {version!r}")


def check_plain_function(name: str, function: object, reason: str = "nothing awaits it") -> None:
    """Check that a value is not a coroutine function.

    :raises InvalidArgument: it is one.
    """
    if is_kind(inspect.iscoroutinefunction, function):
        raise InvalidArgument(
            f"{name} must be a plain function, not a coroutine function: {reason}"
        )


def _as_one(locks: AnyLocks, found: list[AnyLock], job_id: str | None) -> AnyLock:
    """Return the locks as one, each once, with the id of the job that has them."""
    lock, *others = {lock.key: lock for lock in found}.values()
    if others:
        lock = locks.together(lock, *others)
    return lock if job_id is None else lock.with_metadata(job_metadata(job_id))


def _no_ttl(*args: Any, **kwargs: Any) -> None:
    """Default of ``ttl``: the lease has no fixed ttl."""


def _no_name(*args: Any, **kwargs: Any) -> str:
    raise NotImplementedError


def _is_open(parameter: inspect.Parameter) -> bool:
    """Return whether it does not say what the job's callers pass: it takes any number of arguments,
    or a framework may fill it."""
    any_number = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return any_number or "Annotated[" in str(parameter.annotation)


def _call(
    parameters: list[inspect.Parameter], *, named: bool
) -> tuple[tuple[None, ...], dict[str, None]]:
    """Return a call with these arguments, by name where that is possible or where it must be."""
    positional = [
        one
        for one in parameters
        if one.kind is one.POSITIONAL_ONLY or (one.kind is one.POSITIONAL_OR_KEYWORD and not named)
    ]
    others = {one.name: None for one in parameters if one not in positional}
    return (None,) * len(positional), others


@dataclass
class Job:
    """A declared job: how to run it, what its lock is called, and its callbacks.

    ``previous_name`` makes the lock's name in the previous version, while both are deployed.
    """

    name: str
    body: Callable[..., Any]
    lock_name: Callable[..., object] = _no_name
    ttl: Callable[..., Seconds | None] = _no_ttl
    on_skipped: Callable[..., Any] | None = None
    on_expired: Callable[..., Any] | None = None
    options: JobOptions = field(default_factory=JobOptions)
    previous_name: Callable[..., object] | None = None
    has_key: bool = False
    """Whether the lock's name is not made of all arguments."""
    wrapped: bool = field(default=False, init=False)
    """Whether a decorator hides the arguments: ``signature`` is that of the function in it."""

    def __post_init__(self) -> None:
        try:
            # A partial, or another object, may have taken over the name of a function with other
            # arguments.
            named = inspect.isroutine(self.body)
            own = inspect.signature(self.body, follow_wrapped=False)
            self.wrapped = named and hasattr(self.body, "__wrapped__")
            if self.wrapped and any(map(_is_open, own.parameters.values())):
                self.signature = inspect.signature(self.body)
            else:
                self.wrapped, self.signature = False, own
        except ValueError:  # of some builtins
            raise InvalidArgument(
                f"could not make a job of {self.name}: it does not say what its arguments are. "
                "Wrap it in a function of your own"
            ) from None
        self.asynchronous = is_kind(inspect.iscoroutinefunction, self.body)
        if not self.asynchronous:
            reason = f"job {self.name} is a plain function"
            check_plain_function("on_skipped (of a class: lock_failed)", self.on_skipped, reason)
            check_plain_function(
                "on_expired (of a class: lock_expired_before_release)", self.on_expired, reason
            )
        if is_generator_function(self.body):
            raise InvalidArgument(
                f"could not make a job of {self.name}: it is a generator function, and a call only "
                "makes a generator, so the lock would be released before the body runs. Iterate "
                "inside the job"
            )

    def check_callbacks(self) -> None:
        """Check that each callback can be called with the job's arguments.

        :raises InvalidArgument: no call of the job fits one.
        """
        self.check_callback("on_skipped", self.on_skipped, "holder")
        self.check_callback("on_expired", self.on_expired)
        self.check_callback("on_enqueue_failed", self.options.on_enqueue_failed, "job_id")

    def check_callback(self, parameter: str, callback: Any, *extra: str) -> None:
        """Check that a function of ``locks.job`` can be called with the job's arguments.

        :param extra: a further value that it gets if it has a parameter for it.
        :raises InvalidArgument: no call of the job fits it.
        """
        taken = self.signature.parameters.values()
        if not options.is_function(callback) or self.wrapped or any(map(_is_open, taken)):
            return
        calls = [
            _call([one for one in taken if every or one.default is one.empty], named=named)
            for every in (False, True)
            for named in (False, True)
        ]
        for args, kwargs in calls:
            passed = naming.with_defaults(self.signature, callback, args, kwargs)
            for more in ({}, dict.fromkeys(extra)):
                if _accepts(callback, *args, **{**passed, **more}):
                    return
        raise InvalidArgument(
            f"could not make a job of {self.name}: {parameter} gets exactly the job's arguments, "
            f"{self.signature}, but it has the parameters {inspect.signature(callback)}. Give it "
            "those of the job, or (*args, **kwargs)"
        )

    def lock(self, locks: AnyLocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AnyLock:
        """Return the lock of one call.

        :raises TypeError: the arguments do not fit the job's signature.
        :raises InvalidArgument: they give no valid lock name, or no valid ttl.
        """
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:  # this text does not name the job
            if not self.wrapped:
                raise TypeError(f"job {self.name}: {error}") from None
            if not self.has_key:
                raise TypeError(
                    f"job {self.name}: {error}. If a decorator gives it an argument, pass key="
                ) from None
        return self._lock_named(locks, self.lock_name, args, kwargs)

    def whole_lock(
        self,
        locks: AnyLocks,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        job_id: str | None = None,
        names: tuple[bytes, ...] = (),
    ) -> AnyLock:
        """Return what one call locks: its lock, together with those of the previous name, and of
        the names that travelled with the job.

        The job acquires the lock of the previous name. If it only read it, a job of the previous
        version could acquire it the next moment. The same holds for a name that the arguments, as
        they were delivered, do not give any more.
        """
        try:
            found = [self.lock(locks, args, kwargs)]
            if self.previous_name is not None:
                found.append(self._lock_named(locks, self.previous_name, args, kwargs))
        except Exception as error:
            if not names:
                raise
            log.info("the delivered arguments of job %s give no lock: %s", self.name, error)
            found = []
        found += [self._lock_at(locks, name, args, kwargs) for name in names]
        return _as_one(locks, found, job_id)

    def queued_lock(
        self,
        locks: AnyLocks,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        job_id: str | None = None,
        names: tuple[bytes, ...] = (),
    ) -> AnyLock:
        """Return the locks that a job had in mind when it was enqueued: those of the names that
        travelled with it, or else those of its arguments."""
        if not names:
            return self.whole_lock(locks, args, kwargs, job_id)
        found = [self._lock_at(locks, name, args, kwargs) for name in names]
        return _as_one(locks, found, job_id)

    def _lock_at(
        self, locks: AnyLocks, name: bytes, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> AnyLock:
        return self._lock_named(locks, lambda *_, **__: name, args, kwargs)

    def _lock_named(
        self,
        locks: AnyLocks,
        name: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> AnyLock:
        ttl = self.ttl(*args, **kwargs)
        if ttl is not None:
            options.ttl_ms(ttl, f"the ttl of job {self.name}")
        found = self._check_name(name(*args, **kwargs))
        max_hold = self.options.max_hold if ttl is None else None
        hold_at_least = self.options.hold_at_least
        return locks.lock(found, ttl, max_hold=max_hold, hold_at_least=hold_at_least)

    def _check_name(self, name: object) -> str | bytes:
        if isinstance(name, str | bytes):
            return name
        raise InvalidArgument(
            f"the lock's name of job {self.name} must be str or bytes, not {type(name).__name__}"
        )

    def name_function(
        self, key: Any, version: int, parameter: str = "key"
    ) -> Callable[..., str | bytes]:
        """Return the function that makes the lock's name, from the parameters of ``locks.job``.

        :raises InvalidArgument: they do not say how to make a name.
        """
        check_version(version, "a key's version")
        if key is None:
            return lambda *args, **kwargs: naming.lock_name(
                self.name, naming.bind_arguments(self.signature, args, kwargs), version
            )
        if isinstance(key, str | bytes):
            if version:
                raise InvalidArgument(
                    f"could not use a version of {parameter}={key!r}: it is the whole name of the "
                    "lock. Change the name"
                )
            return lambda *args, **kwargs: key
        if not options.is_function(key):
            raise InvalidArgument(
                f"{parameter} must be a name or a function of the job's arguments, not "
                f"{type(key).__name__}"
            )

        check_plain_function(parameter, key)

        def call_key(*args: Any, **kwargs: Any) -> str | bytes:
            value = naming.call_with_defaults(self.signature, key, *args, **kwargs)
            if isinstance(value, str | bytes):
                return value
            if value is None:
                raise InvalidArgument(
                    f"could not name the lock of job {self.name}: {parameter} returned None, which "
                    "would be one lock for all arguments. Return a text or a number"
                )
            return naming.lock_name(self.name, {"(the result of key=)": value}, version)

        return call_key

    def bind_callback(
        self, callback: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], **extra: Any
    ) -> Callable[[], Any]:
        """Return a call of a callback with exactly the job's arguments, defaults among them.

        ``extra`` holds further values. The callback gets those that it has a parameter for.
        """
        keywords = dict(naming.with_defaults(self.signature, callback, args, kwargs))
        for name, value in extra.items():
            if name in self.signature.parameters:
                continue  # the job's own argument of that name goes to the callback
            try:
                signature = inspect.signature(callback)
                signature.bind(*args, **(keywords | {name: value}))
            except (TypeError, ValueError):  # the callback has no parameter for it, or no signature
                continue
            if name in signature.parameters and name not in kwargs:
                keywords[name] = value
        return partial(callback, *args, **keywords)

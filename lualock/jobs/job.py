"""What is known of a job, and of one run of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lualock._core import options
from lualock._core.lease import LeaseBase
from lualock._core.lock import LockBase, LocksBase
from lualock._protocol import AcquireRequest
from lualock.errors import InvalidArgument
from lualock.jobs import arguments
from lualock.jobs.terms import Delivery, Rules, about_job

if TYPE_CHECKING:
    from lualock import _sync, aio

    AnyLocks = _sync.Locks | aio.Locks
    AnyLease = _sync.Lease | aio.Lease
    AnyLock = _sync.Lock | aio.Lock
else:  # jobs are below both APIs, which open them when they are used
    AnyLocks, AnyLease, AnyLock = LocksBase, LeaseBase, LockBase


def _no_limit(*args: Any, **kwargs: Any) -> None:
    """The timeout of a job that names none."""


def _no_name(*args: Any, **kwargs: Any) -> str:
    raise NotImplementedError


@dataclass
class Job:
    """How to run a job, what its lock is called, whom to tell.

    ``old_name`` makes the lock's name as the code did before this one, while both are deployed.
    """

    name: str
    body: Callable[..., Any]
    lock_name: Callable[..., object] = _no_name
    timeout: Callable[..., float | None] = _no_limit
    on_failed: Callable[..., Any] | None = None
    on_expired: Callable[..., Any] | None = None
    rules: Rules = field(default_factory=Rules)
    old_name: Callable[..., object] | None = None

    def __post_init__(self) -> None:
        try:
            self.signature = inspect.signature(self.body)
        except ValueError:  # of some builtins
            raise InvalidArgument(f"job {self.name} does not say what its arguments are") from None
        self.asynchronous = is_kind(inspect.iscoroutinefunction, self.body)
        if not self.asynchronous:
            why = f"as job {self.name} is"
            plain("on_failed (of a class: lock_failed)", self.on_failed, why)
            plain("on_expired (lock_expired_before_release)", self.on_expired, why)
        if is_kind(inspect.isgeneratorfunction, self.body) or is_kind(
            inspect.isasyncgenfunction, self.body
        ):
            raise InvalidArgument(
                f"job {self.name} is a generator function: calling it only makes a generator, so "
                "its lock would be released before it runs. Iterate inside of the job"
            )

    def lock(self, locks: AnyLocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AnyLock:
        """The lock of one call.

        :raises TypeError: the arguments do not fit the job's signature.
        :raises InvalidArgument: no lock's name, or no ttl, can be made of them.
        """
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:  # which does not say whose arguments they are
            raise TypeError(f"job {self.name}: {error}") from None
        return self._named(locks, self.lock_name, args, kwargs)

    def locks(
        self,
        locks: AnyLocks,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        job_id: str | None = None,
    ) -> list[AnyLock]:
        """The locks of one call, the old name's too, in the order in which they are taken.

        That is the order of their keys, whichever is the old one: so all jobs take them in one
        order, also one whose new name is another's old one (a deploy that is taken back), and no
        two wait for each other. Any two versions that are deployed together have a name in common,
        and looking at the old one without taking it would not do: the old code, which knows nothing
        of the new name, may take it the next moment.
        """
        found = [self.lock(locks, args, kwargs)]
        if self.old_name is not None:
            old = self._named(locks, self.old_name, args, kwargs)
            if old.key != found[0].key:
                found.append(old)
        if job_id is not None:
            for lock in found:
                lock._holder_info = about_job(lock._holder_info, job_id)
        found.sort(key=lambda lock: lock.key)
        for lock in found[:-1]:  # while the run waits for the next; then see `last_for`
            lock._options = replace(lock._options, renew=True)
        return found

    def _named(
        self,
        locks: AnyLocks,
        name: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> AnyLock:
        timeout = self.timeout(*args, **kwargs)
        if timeout is not None:
            options.ttl_ms(timeout, "timeout")
        return locks.lock(self._checked(name(*args, **kwargs)), timeout)

    def _checked(self, name: object) -> str | bytes:
        if isinstance(name, str | bytes):
            return name
        raise InvalidArgument(
            f"the lock's name of job {self.name} must be str or bytes, not {type(name).__name__}"
        )

    def naming(self, key: Any, version: int, what: str = "key") -> Callable[..., str | bytes]:
        """How a lock's name is made, as ``locks.job`` says it.

        :raises InvalidArgument: it cannot be.
        """
        check_version(version, "a key's version")
        if key is None:
            return lambda *args, **kwargs: arguments.lock_name(
                self.name, arguments.bind(self.signature, args, kwargs), version
            )
        if isinstance(key, str | bytes):
            if version:
                raise InvalidArgument("a name that is given whole has no version: change the name")
            return lambda *args, **kwargs: key
        if not callable(key):
            raise InvalidArgument(
                f"{what} must be a name or a function of the job's arguments, not "
                f"{type(key).__name__}"
            )

        plain(what, key)

        def made(*args: Any, **kwargs: Any) -> str | bytes:
            value = key(*args, **kwargs)
            if isinstance(value, str | bytes):
                return value
            return arguments.lock_name(self.name, {"(the result of key=)": value}, version)

        return made

    def telling(
        self, callback: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], **more: Any
    ) -> Callable[[], Any]:
        """A call of a callback with exactly the job's arguments, and what it wants to be told
        beside them: what it has a parameter of its own for."""
        told = dict(kwargs)
        for what, value in more.items():
            if what in self.signature.parameters:
                continue  # an argument of the job's own goes to the callback as it is
            try:
                signature = inspect.signature(callback)
                signature.bind(*args, **(told | {what: value}))
            except (TypeError, ValueError):  # no room for it; or no signature, as some builtins
                continue
            if what in signature.parameters and what not in kwargs:
                told[what] = value
        return partial(callback, *args, **told)


def check_version(version: object, what: str) -> None:
    """A number of what a lock's name is made of.

    :raises InvalidArgument: it is none.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise InvalidArgument(f"{what} must be an int from 0 on, not {version!r}")


def is_kind(test: Callable[[object], bool], function: Any) -> bool:
    """Whether a function is of that kind, or what is called in its place: an object, a partial."""
    while isinstance(function, partial):
        function = function.func
    return test(function) or (callable(function) and test(type(function).__call__))


def plain(what: str, function: object, why: str = "for nothing awaits it") -> None:
    """Something that is no coroutine function.

    :raises InvalidArgument: it is one.
    """
    if is_kind(inspect.iscoroutinefunction, function):
        raise InvalidArgument(f"{what} must be a plain function, {why}, not a coroutine function")


class Run:
    """One run: what it is made of, and the leases that it has."""

    def __init__(
        self,
        job: Job,
        locks: AnyLocks,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        delivery: Delivery | None,
    ) -> None:
        self.job, self.args, self.kwargs, self.delivery = job, args, kwargs, delivery
        self.job_id = None if delivery is None else delivery.job_id
        self.locks = job.locks(locks, args, kwargs, self.job_id)
        self.held: list[tuple[AnyLock, AnyLease]] = []
        self.without: list[Any] = []  # attempts that were in vain, though the job may run
        self.asks: list[
            AcquireRequest
        ] = []  # all that was asked for, also what an interruption kept from us

    def call(self, callback: Any, **more: Any) -> Callable[[], Any]:
        """A callback with exactly the job's arguments, and what it wants to be told beside them."""
        return self.job.telling(callback, self.args, self.kwargs, **more)

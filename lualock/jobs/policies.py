"""What to do with a job whose lock is held. The default, ``None``, drops the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lualock._core import options
from lualock._core.options import Seconds
from lualock.errors import NotAcquired
from lualock.jobs.acquire import Attempt, release_quietly
from lualock.jobs.actions import Actions
from lualock.jobs.declaration import AnyLease, check_policy
from lualock.jobs.delivery import Superseded

_Take = Actions[AnyLease]

_SLACK_S = 5.0
"""How much longer than its sender waits a stop request is valid."""


def _store(policy: object, name: str, value_s: float | None) -> None:
    """Set a time of a policy, whose class is frozen, to its number of seconds."""
    object.__setattr__(policy, name, value_s)


@dataclass(frozen=True)
class Skip:
    """Drop the job: ``on_skipped`` is called instead of it."""

    def take(self, attempt: Attempt) -> _Take:
        return attempt.go_on(None)


@dataclass(frozen=True)
class Raise:
    """Raise :class:`lualock.NotAcquired` instead of calling ``on_skipped``.

    In a job system the job has failed then.
    """

    def take(self, attempt: Attempt) -> _Take:
        attempt.raises = True
        raise attempt.refused


@dataclass(frozen=True)
class Retry:
    """Let the job system deliver the job again in ``delay`` seconds.

    Without a job system, the call raises :class:`lualock.jobs.RetryLater`.
    """

    delay: Seconds = 10.0

    def __post_init__(self) -> None:
        _store(self, "delay", options.delay_s(self.delay, "delay"))

    def take(self, attempt: Attempt) -> _Take:
        yield from attempt.later(self.delay)
        raise AssertionError("later() raises")


@dataclass(frozen=True)
class Wait:
    """Wait in the lock's queue, first come, first served; then do what ``then`` says.

    :param wait: for how many seconds at most; ``None``: without a limit.
    """

    wait: Seconds | None
    then: Any = None

    def __post_init__(self) -> None:
        _store(self, "wait", options.wait_s(self.wait, "wait"))
        check_policy(self.then)

    def take(self, attempt: Attempt) -> _Take:
        try:
            lease: AnyLease = yield from attempt.wait(self.wait)
        except NotAcquired:
            return (yield from attempt.go_on(self.then))
        return lease


@dataclass(frozen=True)
class Replace:
    """Ask the holder to release the lock (:meth:`lualock.Lease.release_requested`), and wait.

    After ``wait`` seconds without the lock, do what ``then`` says. If several jobs wait to replace
    the same run, only the last one runs. If that one is killed or gives up, the one before it runs.
    """

    wait: Seconds = 60.0
    then: Any = None

    def __post_init__(self) -> None:
        _store(self, "wait", options.delay_s(self.wait, "wait"))
        check_policy(self.then)

    def take(self, attempt: Attempt) -> _Take:
        # The stop request and the wait share a token, so that no job asks itself to stop.
        request = attempt.lock.request()
        wait_s = options.delay_s(self.wait, "wait")
        try:
            yield from attempt.request_release(request, min(wait_s + _SLACK_S, options.MAX_TTL_S))
            lease: AnyLease = yield from attempt.wait(self.wait, request)
        except NotAcquired:
            # A job that does not run leaves no stop request behind.
            yield from attempt.withdraw(request)
            return (yield from attempt.go_on(self.then))
        except GeneratorExit:
            raise
        except BaseException:
            yield from attempt.withdraw(request)
            raise
        try:
            is_last = yield from attempt.withdraw(request)
        except GeneratorExit:
            raise
        except BaseException:
            yield from release_quietly(lease)
            raise
        if not is_last:
            yield from release_quietly(lease)
            name = attempt.lock.name
            raise Superseded(
                f"could not run the job: a later job asked to replace the same run under lock "
                f"{name!r}, and covers this one. There is nothing to do",
                name=name,
            )
        return lease


@dataclass(frozen=True)
class Coalesce:
    """Run once more after the current run, however many jobs ask for that meanwhile.

    The first job that finds the lock held waits for it. After ``wait`` seconds (``None``: no limit)
    it does what ``then`` says: by default it comes back later. Further jobs are dropped, because
    the waiting job begins after they came, and so covers them.
    """

    wait: Seconds | None = None
    then: Any = Retry(10.0)

    def __post_init__(self) -> None:
        _store(self, "wait", options.wait_s(self.wait, "wait"))
        check_policy(self.then)

    def take(self, attempt: Attempt) -> _Take:
        # Before the reservation, because other jobs are dropped while this one holds it.
        attempt.refuse_own_wait(self.wait)
        yield from attempt.reserve()
        if self.wait == 0:  # the first try has just been made
            return (yield from attempt.go_on(self.then))
        return (yield from Wait(self.wait, self.then).take(attempt))

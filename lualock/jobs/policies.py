"""What is done with a job whose lock is held. The default, ``None``, is to drop it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lualock._core import options
from lualock._protocol import stop_request
from lualock.errors import NotAcquired
from lualock.jobs.actions import Actions, quietly
from lualock.jobs.job import AnyLease
from lualock.jobs.taking import Attempt, release_quietly
from lualock.jobs.terms import Superseded, check_policy

Taking = Actions[AnyLease]

SLACK_S = 5.0
"""For how much longer than its asker waits a request to release stands."""


@dataclass(frozen=True)
class Skip:
    """Drop the job: ``on_failed`` is called instead of it."""

    def take(self, attempt: Attempt) -> Taking:
        return attempt.go_on(None)


@dataclass(frozen=True)
class Retry:
    """Let the job system deliver the job again in ``delay`` seconds.

    Where no system is involved, :class:`lualock.jobs.RetryLater` comes out of the call.
    """

    delay: float = 10.0

    def __post_init__(self) -> None:
        options.delay_s(self.delay, "delay")

    def take(self, attempt: Attempt) -> Taking:
        yield from attempt.later(self.delay)
        raise AssertionError("later() raises")


@dataclass(frozen=True)
class Wait:
    """Wait in the lock's queue for up to ``wait`` seconds (``None``: without an end), in turn with
    everybody else who waits; then do what ``then`` says."""

    wait: float | None
    then: Any = None

    def __post_init__(self) -> None:
        options.wait_s(self.wait, "wait")
        check_policy(self.then)

    def take(self, attempt: Attempt) -> Taking:
        try:
            lease: AnyLease = yield from attempt.wait(self.wait)
        except NotAcquired:
            return (yield from attempt.go_on(self.then))
        return lease


@dataclass(frozen=True)
class Replace:
    """Ask whoever has the lock to release it (:meth:`lualock.Lease.release_requested`), and wait
    for up to ``wait`` seconds; then do what ``then`` says.

    Of several that wait to replace the same run only the last one runs; if it is killed or gives
    up, the one before it.
    """

    wait: float = 60.0
    then: Any = None

    def __post_init__(self) -> None:
        options.delay_s(self.wait, "wait")
        check_policy(self.then)

    def take(self, attempt: Attempt) -> Taking:
        # The request and the wait have one token, so that nobody is asked to stop by itself.
        ask = attempt.lock._request()
        withdraw = attempt.call(stop_request.withdraw(ask))
        try:
            lasts_s = min(self.wait + SLACK_S, options.MAX_TTL_S)
            yield attempt.request_release(ask, lasts_s)
            lease: AnyLease = yield from attempt.wait(self.wait, ask)
        except NotAcquired:
            # Who does not run in its place asks nobody to stop.
            yield from quietly(withdraw)
            return (yield from attempt.go_on(self.then))
        except GeneratorExit:
            raise
        except BaseException:
            yield from quietly(withdraw)
            raise
        try:
            withdrawn = yield from quietly(withdraw)
        except GeneratorExit:
            raise
        except BaseException:
            yield from release_quietly(lease)
            raise
        if withdrawn is False:
            yield from release_quietly(lease)
            raise Superseded(
                f"lock {attempt.lock.name!r}: a later job asked to replace the one that ran, and "
                "stands for this one",
                name=attempt.lock.name,
            )
        return lease


@dataclass(frozen=True)
class Coalesce:
    """Run once more after the one that runs, however many ask for it meanwhile.

    The first who finds the lock held waits for it, for up to ``wait`` seconds (``None``: without an
    end), and then does what ``then`` says, which is to come back later. The others are dropped: it
    will begin after they came, and so stands for them.
    """

    wait: float | None = None
    then: Any = Retry(10.0)

    def __post_init__(self) -> None:
        options.wait_s(self.wait, "wait")
        check_policy(self.then)

    def take(self, attempt: Attempt) -> Taking:
        # First, for jobs that come while it has the place are dropped for its sake.
        attempt.refuse_own_wait(self.wait)
        yield from attempt.take_place()
        if self.wait == 0:  # the first try has just been made
            return (yield from attempt.go_on(self.then))
        return (yield from Wait(self.wait, self.then).take(attempt))

"""What an integration passes in and gets back: deliveries, and the results of enqueueing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lualock._core import options
from lualock._core.options import Seconds
from lualock.errors import NotAcquired
from lualock.jobs.identity import encode_token, job_metadata, names_in, token_of

RESERVE_S = 10.0
"""How long a reservation lasts until the job is in its queue. A crash before that frees it then."""


class RetryLater(NotAcquired):
    """The job did not run: its policy wants another delivery in ``delay_s`` seconds.

    Integrations turn this into their system's own retry. Without a job system, the call raises it.
    ``job_id`` is the id of the job to deliver again.
    """

    delay_s: float = 0.0
    job_id: str | None = None

    def is_of(self, delivery: Delivery | None) -> bool:
        """Return whether this delivery comes back, and not that of a job which its job called."""
        return delivery is not None and self.job_id == delivery.job_id


class Superseded(NotAcquired):
    """The job did not run, and need not: another job that begins later covers it."""

    retryable = False


def _no_retry(_: object) -> None:
    """Default of ``will_retry`` and ``result_retry``: the job system does not retry."""


def _not_ended() -> bool:
    """Default of ``ended``: the job system never gives up a job that waits."""
    return False


def is_failure(error: BaseException) -> bool:
    """Default of ``failed``: an error is a failure, an interruption of the job is not."""
    return isinstance(error, Exception)


def check_retry_s(delay: Seconds | None) -> float | None:
    """Return in how many seconds a system tries a job again; a time in the past means at once.

    :raises InvalidArgument: the lock or the reservation cannot be kept for that long.
    """
    if delay is None:
        return None
    what = "the delay until the retry"
    return options.delay_s(max(options.seconds(delay, what), 0), what)


@dataclass(frozen=True)
class Delivery:
    """One attempt of a job system to run a job.

    :param job_id: the system's id of the job, the same for all its attempts.
    :param token: the token that came with the job, from :class:`Enqueued`. ``None``: the system
        cannot carry a token, so it is derived from the id.
    :param will_retry: called when the job raised: returns the seconds until the system tries the
        job again, or ``None`` after the last attempt.
    :param result_retry: the same for what the job returned, if a result can ask for a retry.
    :param failed: called when the job raised and will not be tried again: returns whether the
        system counts that as a failure.
    :param ended: called when the job has its lock: returns whether the system has given the job up
        meanwhile. If so, the job does not begin.
    :param redelivers: whether the system can deliver the job again later, as a policy may ask. If
        not, a job that does not run keeps nothing.
    :raises InvalidArgument: the id is not a str, or is empty.
    """

    job_id: str
    token: str | None = None
    will_retry: Callable[[BaseException], Seconds | None] = _no_retry
    result_retry: Callable[[Any], Seconds | None] = _no_retry
    failed: Callable[[BaseException], bool] = is_failure
    ended: Callable[[], bool] = _not_ended
    redelivers: bool = True

    def __post_init__(self) -> None:
        job_metadata(self.job_id)

    @property
    def owner(self) -> bytes:
        """The token of the job's reservation, and of its lock while the job waits for a retry."""
        return encode_token(self.token or token_of(self.job_id))

    @property
    def names(self) -> tuple[bytes, ...]:
        """The names of the locks beside which the job has its reservation; none if unknown."""
        return names_in(self.token)


@dataclass(frozen=True)
class Reserved:
    """A job has its reservation, for :data:`RESERVE_S` seconds or until it is confirmed."""

    job_id: str
    token: str


@dataclass(frozen=True)
class Enqueued:
    """A job is in its queue. ``result`` is what pushing it returned."""

    job_id: str
    token: str
    result: Any = None


@dataclass(frozen=True)
class Refused:
    """A job was not enqueued; counts as false.

    ``job_id`` is the conflicting job. It is ``None`` if the holder is not a job, or if its id has
    more than 128 bytes; ``holder`` then says which process holds the lock or enqueued the job.
    ``state`` is ``queued``, ``running``, or ``unavailable``: the server did not answer. ``result``
    is what ``on_enqueue_failed`` returned.
    """

    job_id: str | None
    state: str
    holder: str | None = None
    result: Any = None

    def __bool__(self) -> bool:
        return False

"""What a job's declaration says, what a job system tells of a delivery, and what it is told."""

from __future__ import annotations

import hashlib
import inspect
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lualock._core import options
from lualock.errors import InvalidArgument, NotAcquired

RESERVE_S = 10.0
"""How long a place lasts until the job is in its queue: a crash before that frees it then."""

QUEUE_TTL_S = 3600.0
"""How long a job keeps what it has while it waits in a queue, unless its declaration says more."""

MAX_ID_BYTES = 128
"""A longer id of a job is kept as a digest, for what is kept beside a lock has an end."""


class RetryLater(NotAcquired):
    """The job did not run: the policy wants it to be delivered again in ``delay_s`` seconds.

    Integrations turn this into their system's own retry; where no system is involved it comes out
    of the call. ``job_id`` is the id of the job that is to be delivered again.
    """

    delay_s: float = 0.0
    job_id: str | None = None


class Superseded(NotAcquired):
    """The job did not run, and need not: another one, which begins later, stands for it."""


def never(_: object) -> None:
    """Of a system that does not retry."""


def retry_s(told: float | None) -> float | None:
    """In how many seconds a system says that it tries a job again; what is past is at once.

    :raises InvalidArgument: that is no time for which anything could be kept.
    """
    return None if told is None else options.delay_s(max(told, 0), "the delay until the retry")


def _not_ended() -> bool:
    """Of a system that cannot give a job up while it waits."""
    return False


def is_failure(error: BaseException) -> bool:
    """Of a system that has no exceptions of its own: what interrupts a job is no failure of it."""
    return isinstance(error, Exception)


@dataclass(frozen=True)
class Delivery:
    """One attempt of a job system to run a job.

    :param job_id: the system's id of the job, the same for all its attempts.
    :param token: the token that came with the job, from :class:`Enqueued`; ``None`` where the
        system has no room for it: it is made of the id then.
    :param will_retry: called when the job raised: seconds until the system tries it again, or
        ``None`` if this was the last attempt.
    :param result_retry: the same for what the job returned, where that can ask for a retry.
    :param failed: called when the job raised and will not be tried again: whether that is a failure
        to the system, and not one of its ways to say something else.
    :param ended: called when the job has its lock: whether the system has given it up meanwhile, so
        that it must not begin.
    :raises InvalidArgument: the id is no str, or empty.
    """

    job_id: str
    token: str | None = None
    will_retry: Callable[[BaseException], float | None] = never
    result_retry: Callable[[Any], float | None] = never
    failed: Callable[[BaseException], bool] = is_failure
    ended: Callable[[], bool] = _not_ended

    def __post_init__(self) -> None:
        job_text(self.job_id)

    @property
    def owner(self) -> bytes:
        """The token of the job's place, and of its lock while it waits for a retry."""
        return as_token(self.token or token_of(self.job_id))


@dataclass(frozen=True)
class Reserved:
    """A job has its place, until :data:`RESERVE_S` are over or it is confirmed."""

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

    ``job_id`` is the job that is in its way; ``None`` where that is no job, or its id has more than
    128 bytes: see ``holder``, who has the lock, or has enqueued it. ``state`` is ``queued``,
    ``running``, or ``unavailable``: the server could not be asked. ``result`` is what the callback
    returned.
    """

    job_id: str | None
    state: str
    holder: str | None = None
    result: Any = None

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class Rules:
    """What a job's declaration says beyond its name and its timeout; see ``locks.job``."""

    policy: Any = None
    unique: str | None = None
    on_retry: str = "release"
    on_final_failure: str = "release"
    on_unavailable: str = "raise"
    queue_ttl: float = QUEUE_TTL_S
    on_enqueue_failed: Callable[..., Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _one_of("unique", self.unique, None, "queued", "running", "both")
        _one_of("on_retry", self.on_retry, "release", "hold")
        _one_of("on_final_failure", self.on_final_failure, "release", "keep")
        _one_of("on_unavailable", self.on_unavailable, "raise", "run", "skip")
        options.ttl_ms(self.queue_ttl, "queue_ttl")
        options.callback(self.on_enqueue_failed, "on_enqueue_failed")
        check_policy(self.policy)

    @property
    def queues(self) -> bool:
        """Whether a queued job has a place."""
        return self.unique in ("queued", "both")


def _one_of(what: str, value: object, *known: object) -> None:
    if value not in known:
        raise InvalidArgument(f"{what} must be {' or '.join(map(repr, known))}, not {value!r}")


def check_policy(value: Any) -> None:
    """Something that says what to do when a lock is held.

    :raises InvalidArgument: it is nothing of the kind.
    """
    says = hasattr(value, "take") or callable(value) or value is None
    if inspect.iscoroutine(value):  # of a function that is none to the eye
        value.close()
    if not says or isinstance(value, type) or inspect.iscoroutinefunction(value):
        raise InvalidArgument(
            "a policy is one of lualock.jobs, such as jobs.Wait(5), or a plain function that "
            f"returns one, not {value!r}"
        )


def token_of(job_id: str) -> str:
    """A token made of a job's id, for systems that have no room for one of their own.

    Who knows the id can make it. Two jobs of one id are one then: whoever enqueues the second gets
    the place of the first.
    """
    digest = hashlib.sha256(b"lualock job " + job_id.encode("utf-8", "surrogatepass")).digest()
    return urlsafe_b64encode(digest[:16])[:22].decode()


def as_token(token: object) -> bytes:
    """A token as it is sent.

    :raises InvalidArgument: it is none.
    """
    raw = token.encode("ascii", "replace") if isinstance(token, str) else b""
    if len(raw) != 22 or not raw.replace(b"-", b"a").replace(b"_", b"a").isalnum():
        raise InvalidArgument("not a job's token: pass on unchanged what enqueueing it gave")
    return raw


def job_text(job_id: str) -> str:
    """How a job's id is kept beside its locks; a very long one, and one that is no text to a server
    (a lone surrogate), as a digest, so that no two are the same."""
    if not isinstance(job_id, str) or not job_id:
        raise InvalidArgument("a job's id must be a str, and not empty")
    raw = job_id.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_ID_BYTES or raw != job_id.encode("utf-8", "replace"):
        return f"long job {hashlib.sha256(raw).hexdigest()[:40]}"
    return f"job {job_id}"


def about_job(holder_info: options.HolderInfo, job_id: str) -> options.HolderInfo:
    """What is kept beside a lease of a job. The holder is cut short where both have no room: it is
    for people, and the job's id is not."""
    metadata = b"\n" + job_text(job_id).encode("utf-8", "replace")
    holder = holder_info.holder
    if holder is not None:
        holder = holder[: options.MAX_HOLDER_INFO_BYTES - len(metadata)]
    return options.HolderInfo(holder, metadata)


def job_id_of(metadata: str) -> str | None:
    """The job's id out of what :func:`job_text` made; ``None`` for what is no job's, and where only
    the digest is known."""
    return metadata[4:] if metadata.startswith("job ") else None

"""End a run: release what it holds, or keep it for the job's retry, and report a loss."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, NamedTuple

from lualock._protocol import note
from lualock.errors import LeaseLost, LockError, LockUnavailable, NotAcquired
from lualock.jobs.acquire import Attempt, Run
from lualock.jobs.actions import Actions
from lualock.jobs.declaration import AnyLease
from lualock.jobs.delivery import Delivery, RetryLater, check_retry_s, is_failure
from lualock.jobs.reservation import Reservation, abandon_held_by

log = logging.getLogger("lualock.jobs")


def finish(attempt: Attempt, error: BaseException | None, result: Any) -> Actions[None]:
    """Release or keep what the run holds, and call ``on_expired`` if its lease was lost."""
    run, job = attempt.run, attempt.job
    keep = _what_to_keep(run, error, result)
    problem: LockError | None = None
    lease = attempt.pop_lease()
    if lease is not None:
        if error is not None or keep is not None:
            lease.release_early()  # its retry must find the lock free
        try:
            yield from _release_or_keep(run, lease, keep)
        except LeaseLost as lost:
            if not lost.given_up:  # the job itself released it
                log.warning("job %s outlived its lease: %s", job.name, lost)
                problem = lost
        except LockError as unknown:
            log.error("job %s could not release its lock: %s", job.name, unknown)
            problem = unknown
            if isinstance(unknown, LockUnavailable):
                yield lease.abandon_in_background
        except GeneratorExit:
            raise
        except BaseException as interruption:
            yield lease.abandon_in_background
            if keep is not None and _what_to_keep(run, interruption, None) is None:
                yield from _abandon_kept(run)
            raise
    elif keep is None:
        # The attempt that failed could clean up only if the server was reachable.
        yield from _release_everything(attempt)
    if problem is None:
        return
    if error is not None:
        note(error, f"and then: {problem}")
    if job.on_expired is None or not isinstance(problem, LeaseLost):
        return
    try:
        yield run.bind_callback(job.on_expired)
    except GeneratorExit:
        raise
    except Exception as failure:
        if error is None:
            raise
        log.exception("the expiry callback of job %s raised", job.name)
        note(error, f"and then its expiry callback raised: {failure!r}")


class _Keep(NamedTuple):
    """What a job keeps while it waits, and for how long: its lock, or only its reservation."""

    for_s: float
    keeps_lock: bool


def _what_to_keep(run: Run, error: BaseException | None, result: Any) -> _Keep | None:
    """Return what the job keeps at the end of this run; ``None``: nothing."""
    declared = run.job.options
    try:
        delay_s = _retry_s(run.delivery, error, result)
        failed = delay_s is None and error is not None and _failed(run, error)
    except Exception:
        log.exception(
            "whether job %s is retried is not known, so its lock is released", run.job.name
        )
        return None
    if delay_s is not None:
        if not (declared.keep_lock_on_retry or declared.reserves):
            return None
        return _Keep(delay_s + declared.queue_ttl_s, declared.keep_lock_on_retry)
    if declared.keep_lock_on_failure and failed:
        return _Keep(declared.queue_ttl_s, True)
    return None


def _retry_s(delivery: Delivery | None, error: BaseException | None, result: Any) -> float | None:
    if delivery is None:
        return None
    return check_retry_s(
        delivery.result_retry(result) if error is None else delivery.will_retry(error)
    )


def _failed(run: Run, error: BaseException) -> bool:
    return is_failure(error) if run.delivery is None else run.delivery.failed(error)


def _release_or_keep(run: Run, lease: AnyLease, keep: _Keep | None) -> Actions[None]:
    if keep is None:
        yield lease.release
    elif keep.keeps_lock:
        token = None if run.delivery is None else run.delivery.owner
        yield partial(lease.keep_for, run.queued_lock.request(token, keep.for_s))
    else:
        # Reserve before the release, so that the job has one of the two at every moment.
        yield from _keep_reservation(run, keep.for_s)
        yield lease.release


def _keep_reservation(run: Run, for_s: float) -> Actions[None]:
    assert run.delivery is not None
    reservation = Reservation(run.queued_lock, run.delivery.owner)
    try:
        yield from reservation.reserve()
    except LockError as error:
        log.info("job %s waits for its retry without a reservation: %s", run.job.name, error)
        return
    # First reserved for a short time: a copy of that request may arrive after the job has run.
    yield from reservation.extend(for_s)


def _abandon_kept(run: Run) -> Actions[None]:
    """Abandon what may have been kept for a retry that will not come."""
    assert run.delivery is not None
    yield from abandon_held_by(run.lock, run.delivery.owner)
    yield from Reservation(run.queued_lock, run.delivery.owner).abandon()


def give_up(attempt: Attempt, error: BaseException) -> Actions[None]:
    """End an attempt that failed with this error.

    The reservation, and a lock that the job's last attempt kept for this one, stay only if the job
    will be delivered again: other jobs are dropped while they exist.
    """
    delivery, reservation = attempt.delivery, attempt.reservation
    delay_s = None if delivery is None else _delay_s(attempt, delivery, error)
    if delay_s is None:  # also if it is refused: one of two locks may have been kept
        yield from _abandon_kept_lock(attempt)
    if reservation is None:
        return
    if delay_s is not None:
        try:
            yield from reservation.extend(delay_s + attempt.job.options.queue_ttl_s)
        except GeneratorExit:
            raise
        except BaseException as interruption:
            yield from give_up(attempt, interruption)  # this error replaces the RetryLater
            raise
    elif isinstance(error, LockUnavailable):
        yield from reservation.abandon()
    else:
        yield from reservation.release_quietly()


def _delay_s(attempt: Attempt, delivery: Delivery, error: BaseException) -> float | None:
    """Return in how many seconds the job that could not begin is delivered again, or ``None``."""
    if isinstance(error, RetryLater):
        # A system ignores the retry of a job that it gave up.
        return error.delay_s if delivery.redelivers and not delivery.ended() else None
    if isinstance(error, NotAcquired):
        return None
    if isinstance(error, LockUnavailable) and attempt.job.options.when_unavailable != "raise":
        return None  # it runs without its lock, or is dropped
    try:
        return _retry_s(delivery, error, None)
    except Exception:
        log.exception(
            "whether job %s is retried is not known, so its reservation is released",
            attempt.job.name,
        )
        return None


def _abandon_kept_lock(attempt: Attempt) -> Actions[None]:
    """Abandon the lock that the job's last attempt may have kept for this one."""
    if attempt.delivery is not None and attempt.job.options.keep_lock_on_retry:
        yield from abandon_held_by(attempt.lock, attempt.delivery.owner)


def _release_everything(attempt: Attempt) -> Actions[None]:
    """Release the reservation and a kept lock of a job that ran without this lock."""
    yield from _abandon_kept_lock(attempt)
    if attempt.reservation is not None:
        yield from attempt.reservation.release_quietly()

"""End a run: release what it holds, or keep it for the job's retry, and report a loss."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, NamedTuple

from lualock import _protocol as protocol
from lualock._core import options
from lualock._protocol import LeaseState, Steps, note
from lualock.errors import LeaseLost, LockError, LockUnavailable
from lualock.jobs import verbs
from lualock.jobs.acquire import abandon_in_background
from lualock.jobs.actions import Actions
from lualock.jobs.declaration import AnyLease, AnyLock, Run
from lualock.jobs.delivery import RESERVE_S, check_retry_s, is_failure
from lualock.jobs.reservation import extend_reservation, reservation_of, reservation_request

log = logging.getLogger("lualock.jobs")


def finish(run: Run, error: BaseException | None, result: Any) -> Actions[None]:
    """Release or keep what the run holds, and call ``on_expired`` if its lease was lost."""
    job = run.job
    keep = _what_to_keep(run, error, result)
    problem: LockError | None = None
    interruption: BaseException | None = None
    while run.held:
        lock, lease = run.held.pop()
        try:
            yield from _release_or_keep(run, lock, lease, keep)
        except LeaseLost as lost:
            if lost.given_up:
                continue  # the job itself released it
            log.warning("job %s outlived its lease: %s", job.name, lost)
            problem = lost
        except LockError as unknown:
            log.error("job %s could not release its lock: %s", job.name, unknown)
            problem = problem or unknown
            if isinstance(unknown, LockUnavailable):
                yield abandon_in_background(lease._driver, lease._request)
        except GeneratorExit:
            raise
        except BaseException as raised:
            interruption = interruption or raised
            yield abandon_in_background(lease._driver, lease._request)
    if keep is None:
        # Attempts that failed could clean up only if the server was reachable.
        for attempt in run.failed_attempts:
            yield from attempt.release_everything()
    if interruption is not None:
        if keep is not None and _what_to_keep(run, interruption, None) is None:
            yield from _abandon_kept(run)
        raise interruption
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


def _abandon_kept(run: Run) -> Actions[None]:
    """Abandon what may have been kept for a retry that will not come."""
    assert run.delivery is not None
    for lock in run.locks:
        request, driver = lock._request(), lock._locks._driver
        request.token = run.delivery.owner
        yield abandon_in_background(driver, request)
        yield abandon_in_background(driver, reservation_request(lock, request.token))


class _Keep(NamedTuple):
    """What a job keeps while it waits, and for how long: its lock, or only its reservation."""

    for_s: float
    keeps_lock: bool


def _what_to_keep(run: Run, error: BaseException | None, result: Any) -> _Keep | None:
    """Return what the job keeps at the end of this run; ``None``: nothing."""
    declared = run.job.options
    try:
        delay_s = _retry_s(run, error, result)
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


def _retry_s(run: Run, error: BaseException | None, result: Any) -> float | None:
    delivery = run.delivery
    if delivery is None:
        return None
    return check_retry_s(
        delivery.result_retry(result) if error is None else delivery.will_retry(error)
    )


def _failed(run: Run, error: BaseException) -> bool:
    return is_failure(error) if run.delivery is None else run.delivery.failed(error)


def _release_or_keep(run: Run, lock: AnyLock, lease: AnyLease, keep: _Keep | None) -> Actions[None]:
    if keep is None:
        yield lease.release
    elif keep.keeps_lock:
        yield from _keep_lock(run, lock, lease, keep.for_s)
    else:
        # Reserve before the release, so that the job has one of the two at every moment.
        yield from _keep_reservation(run, lock, keep.for_s)
        yield lease.release


def _keep_lock(run: Run, lock: AnyLock, lease: AnyLease, for_s: float) -> Actions[None]:
    """Hand the lease over to the token of the job's next delivery."""
    driver: Any = lock._locks._driver
    request = lock._request()
    if run.delivery is not None:
        request.token = run.delivery.owner
    request.ttl_ms = options.ttl_ms(min(for_s, options.MAX_TTL_S))
    adopt = protocol.adopt(request, lease._request.token, driver.server_clock, "kept", fresh=False)
    yield partial(_hand_over, lease, adopt)


def _hand_over(lease: AnyLease, steps: Steps[LeaseState]) -> Any:
    if lease._renewer is not None:
        lease._renewer.drop(lease)
    lease._state.mark_released()
    return lease._driver.run(_hand_over_steps(lease, steps))


def _hand_over_steps(lease: AnyLease, steps: Steps[LeaseState]) -> Steps[None]:
    """Hand a lease over, or release it on an error, because nothing renews it any more."""
    try:
        yield from steps
    except GeneratorExit:
        raise
    except BaseException:
        yield from protocol.undo(lease._request)
        raise


def _keep_reservation(run: Run, lock: AnyLock, for_s: float) -> Actions[None]:
    assert run.delivery is not None
    driver: Any = lock._locks._driver
    reservation = reservation_of(lock, run.job_id, RESERVE_S)
    request = reservation._request()
    request.token = run.delivery.owner
    reserve = verbs.reserve(request, lock.key, driver.server_clock, alone=False)
    try:
        yield partial(driver.run, reserve)
    except LockError as error:
        log.info("job %s waits for its retry without a reservation: %s", run.job.name, error)
        return
    # First reserved for a short time: a copy of that request may arrive after the job has run.
    yield from extend_reservation(lock, request.token, for_s)

"""The end of a run: give up what it has, or keep it for the job's retry; and tell of a loss."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, NamedTuple

from lualock import _protocol as protocol
from lualock._core import options
from lualock._protocol import LeaseState, Steps, note
from lualock.errors import LeaseLost, LockError, LockUnavailable
from lualock.jobs import verbs
from lualock.jobs.actions import Actions
from lualock.jobs.job import AnyLease, AnyLock, Run
from lualock.jobs.places import ask_of, keep, reservation_of
from lualock.jobs.taking import abandon_quietly
from lualock.jobs.terms import RESERVE_S, is_failure, retry_s

log = logging.getLogger("lualock.jobs")


def finish(it: Run, error: BaseException | None, result: Any) -> Actions[None]:
    """Give up what the run has, and tell whoever wants to know if that was lost before."""
    job = it.job
    kept = _kept(it, error, result)
    problem: LockError | None = None
    interrupted: BaseException | None = None
    while it.held:
        lock, lease = it.held.pop()
        try:
            yield from _give_up(it, lock, lease, kept)
        except LeaseLost as lost:
            if lost.given_up:
                continue  # by the job itself
            log.warning("job %s outlived its lease: %s", job.name, lost)
            problem = lost
        except LockError as unknown:
            log.error("job %s could not release its lock: %s", job.name, unknown)
            problem = problem or unknown
            if isinstance(unknown, LockUnavailable):
                yield abandon_quietly(lease._driver, lease._request)
        except GeneratorExit:
            raise
        except BaseException as other:
            interrupted = interrupted or other
            yield abandon_quietly(lease._driver, lease._request)
    for attempt in it.without if kept is None else ():
        yield from attempt.leave_all()  # the server may have been away for all this time
    if interrupted is not None:
        if kept is not None and _kept(it, interrupted, None) is None:
            yield from _take_back(it)
        raise interrupted
    if problem is None:
        return
    if error is not None:
        note(error, f"and then: {problem}")
    if job.on_expired is None or not isinstance(problem, LeaseLost):
        return
    try:
        yield it.call(job.on_expired)
    except GeneratorExit:
        raise
    except Exception as failure:
        if error is None:
            raise
        log.exception("the expiry callback of job %s raised", job.name)
        note(error, f"and then its expiry callback raised: {failure!r}")


def _take_back(it: Run) -> Actions[None]:
    """What may have been kept for a retry that will not be."""
    assert it.delivery is not None
    for lock in it.locks:
        ask, driver = lock._request(), lock._locks._driver
        ask.token = it.delivery.owner
        yield abandon_quietly(driver, ask)
        yield abandon_quietly(driver, ask_of(lock, ask.token))


class _Kept(NamedTuple):
    """What a job keeps while it waits: its lock, or only its place in the queue."""

    for_s: float
    lock: bool


def _kept(it: Run, error: BaseException | None, result: Any) -> _Kept | None:
    """What the job keeps at the end of this run; ``None``: nothing."""
    rules = it.job.rules
    try:
        delay_s = _retry_s(it, error, result)
        failed = delay_s is None and error is not None and _failed(it, error)
    except Exception:
        log.exception("whether job %s is retried is not known, so its lock is freed", it.job.name)
        return None
    if delay_s is not None:
        hold = rules.on_retry == "hold"
        return _Kept(delay_s + rules.queue_ttl, hold) if hold or rules.queues else None
    if rules.on_final_failure == "keep" and failed:
        return _Kept(rules.queue_ttl, True)
    return None


def _retry_s(it: Run, error: BaseException | None, result: Any) -> float | None:
    if it.delivery is None:
        return None
    told = it.delivery.result_retry(result) if error is None else it.delivery.will_retry(error)
    return retry_s(told)


def _failed(it: Run, error: BaseException) -> bool:
    return is_failure(error) if it.delivery is None else it.delivery.failed(error)


def _give_up(it: Run, lock: AnyLock, lease: AnyLease, kept: _Kept | None) -> Actions[None]:
    if kept is None:
        yield lease.release
    elif kept.lock:
        yield from _keep_lock(it, lock, lease, kept.for_s)
    else:
        yield from _keep_place(it, lock, kept.for_s)  # first, so that it is never without both
        yield lease.release


def _keep_lock(it: Run, lock: AnyLock, lease: AnyLease, for_s: float) -> Actions[None]:
    """The lease goes over to the token that the job's next delivery comes with."""
    driver: Any = lock._locks._driver
    ask = lock._request()
    if it.delivery is not None:
        ask.token = it.delivery.owner
    ask.ttl_ms = options.ttl_ms(min(for_s, options.MAX_TTL_S))
    keep = protocol.adopt(ask, lease._request.token, driver.server_clock, "kept", fresh=False)
    yield partial(_pass_on, lease, keep)


def _pass_on(lease: AnyLease, steps: Steps[LeaseState]) -> Any:
    if lease._renewer is not None:
        lease._renewer.drop(lease)
    lease._state.released = True
    return lease._driver.run(_passed_on(lease, steps))


def _passed_on(lease: AnyLease, steps: Steps[LeaseState]) -> Steps[None]:
    """Pass it on, or give it up: nobody will look after it when this has ended."""
    try:
        yield from steps
    except GeneratorExit:
        raise
    except BaseException:
        yield from protocol.undo(lease._request)
        raise


def _keep_place(it: Run, lock: AnyLock, for_s: float) -> Actions[None]:
    assert it.delivery is not None
    driver: Any = lock._locks._driver
    place = reservation_of(lock, it.job_id, RESERVE_S)
    ask = place._request()
    ask.token = it.delivery.owner
    reserve = verbs.reserve(ask, lock.key, driver.server_clock, alone=False)
    try:
        yield partial(driver.run, reserve)
    except LockError as error:
        log.info("job %s waits for its retry without a place: %s", it.job.name, error)
        return
    # Only then for so long: a reservation whose reply was lost may come again when the job has run.
    yield from keep(lock, ask.token, for_s)

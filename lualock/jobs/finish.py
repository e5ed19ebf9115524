"""The end of a run: give up what it has, or keep it for the job's retry; and tell of a loss."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from lualock import options, protocol
from lualock.errors import LeaseLost, LockError
from lualock.jobs import verbs
from lualock.jobs.actions import Actions
from lualock.jobs.job import AnyLease, AnyLock, Run
from lualock.jobs.taking import place_of
from lualock.protocol import note

log = logging.getLogger("lualock.jobs")


def finish(it: Run, error: BaseException | None, result: Any) -> Actions[None]:
    """Give up what the run has, and tell whoever wants to know if that was lost before."""
    job = it.job
    keep_s = _kept_for(it, error, result)
    problem: LockError | None = None
    interrupted: BaseException | None = None
    while it.held:
        lock, lease = it.held.pop()
        try:
            yield from _give_up(it, lock, lease, *keep_s)
        except LeaseLost as lost:
            if lost.given_up:
                continue  # by the job itself
            log.warning("job %s outlived its lease: %s", job.name, lost)
            problem = lost
        except LockError as unknown:
            # The run is over, and whether its lock is free will show when the lease ends.
            log.error("job %s could not release its lock: %s", job.name, unknown)
            problem = problem or unknown
        except GeneratorExit:
            raise
        except BaseException as other:
            interrupted = interrupted or other
    if interrupted is not None:
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


def _kept_for(it: Run, error: BaseException | None, result: Any) -> tuple[float, bool] | tuple[()]:
    """How long what the run has is kept for its job at most, and whether that is the lock or only
    its place in the queue. Nothing: it is given up."""
    delivery, rules = it.delivery, it.job.rules
    if delivery is None and (error is None or rules.on_final_failure == "release"):
        return ()
    try:
        if delivery is None:
            delay_s = None
        elif error is None:
            delay_s = delivery.result_retry(result)
        else:
            delay_s = delivery.will_retry(error)
    except Exception:
        log.exception("whether job %s is retried is not known, so its lock is freed", it.job.name)
        return ()
    if delay_s is not None:
        lock = rules.on_retry == "hold"
        return (delay_s + rules.queue_ttl, lock) if lock or rules.queues else ()
    if error is not None and rules.on_final_failure == "keep":
        return rules.queue_ttl, True
    return ()


def _give_up(
    it: Run, lock: AnyLock, lease: AnyLease, keep_s: float = 0.0, the_lock: bool = False
) -> Actions[None]:
    driver: Any = lock._locks._driver
    if not keep_s:
        yield lease.release
        return
    keep_s = min(keep_s, options.MAX_TTL_S)
    if the_lock:
        # The lease goes over to the token that the job's next delivery comes with.
        ask = lock._ask()
        if it.delivery is not None:
            ask.token = it.delivery.owner
        ask.ttl_ms = options.ttl_ms(keep_s)
        keep = protocol.adopt(ask, lease._ask.token, driver.server_clock, "kept")
        yield partial(_pass_on, lease, keep)
        return
    # Its place first, so that it is never without both.
    place = place_of(lock, it.job_id, keep_s)
    ask = place._ask()
    if it.delivery is not None:
        ask.token = it.delivery.owner
    reserve = verbs.reserve(ask, lock.key, driver.server_clock, alone=False)
    try:
        yield partial(driver.run, reserve)
    except LockError as error:
        log.info("job %s waits for its retry without a place: %s", it.job.name, error)
    yield lease.release


def _pass_on(lease: AnyLease, steps: Any) -> Any:
    if lease._watch is not None:
        lease._watch.drop(lease)
    lease._grant.released = True
    return lease._driver.run(steps)

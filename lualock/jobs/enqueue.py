"""The order of events when a job is enqueued: reserve, push, confirm. A generator as in ``run``.

The place is there before the job is, so that no two are pushed; it lasts some seconds until it is
confirmed, so that a crash before the push frees it; and a job that was pushed but not confirmed is
no worse off than one without a place: its run takes the lock like any other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from lualock import _protocol as protocol
from lualock._core import options
from lualock._protocol import LeaseState
from lualock.errors import InvalidArgument, LeaseLost, LockError, LockUnavailable
from lualock.jobs import verbs
from lualock.jobs.actions import Actions
from lualock.jobs.job import AnyLock, AnyLocks, Job
from lualock.jobs.places import keep, leave, reservation_of
from lualock.jobs.terms import (
    RESERVE_S,
    Delivery,
    Enqueued,
    Refused,
    Reserved,
    as_token,
    job_id_of,
    job_text,
)

log = logging.getLogger("lualock.jobs")


class Entry:
    """One job on its way into its queue."""

    def __init__(
        self, job: Job, locks: AnyLocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.job, self.args, self.kwargs = job, args, kwargs
        self.locks = job.locks(locks, args, kwargs)

    def enqueue(
        self, push: Callable[[str], Any], job_id: str, token: str | None, delay_s: float
    ) -> Actions[Enqueued | Refused]:
        """Push a job unless another is in its way."""
        options.delay_s(delay_s, "delay")
        if not callable(push):
            raise InvalidArgument(f"push must be callable, not {type(push).__name__}")
        reserved = yield from self.reserve(job_id, token)
        if isinstance(reserved, Refused):
            return reserved
        try:
            result = yield partial(push, reserved.token)
        except GeneratorExit:
            raise
        except BaseException:
            yield from self._undo(self.locks, reserved.token)
            raise
        if reserved.token:
            yield from self.confirm(reserved.token, delay_s)
        return Enqueued(job_id, reserved.token, result)

    def reserve(self, job_id: str, token: str | None) -> Actions[Reserved | Refused]:
        """Take the job's place, for some seconds."""
        job, rules = self.job, self.job.rules
        job_text(job_id)
        raw = self.locks[0]._request().token if token is None else as_token(token)
        done: list[AnyLock] = []
        try:
            for lock in self.locks:
                if rules.unique is not None:
                    yield from self._reserve(lock, job_id, raw)
                    done.append(lock)
        except verbs.Taken as other:
            yield from self._undo(done, raw.decode())
            log.info("job %s was not enqueued: %s", job.name, other)
            state = "running" if other.running else "queued"
            return (yield from self.refuse(job_id_of(other.metadata), state, other.holder))
        except LockUnavailable as error:
            yield from self._undo(done, raw.decode())
            if rules.on_unavailable == "raise":
                raise
            if rules.on_unavailable == "skip":
                log.warning("job %s was not enqueued: %s", job.name, error)
                return (yield from self.refuse(None, "unavailable", None))
            log.warning("job %s is enqueued without a place: %s", job.name, error)
            return Reserved(job_id, "")
        except GeneratorExit:
            raise
        except BaseException:
            yield from self._undo(done, raw.decode())
            raise
        return Reserved(job_id, raw.decode() if rules.queues else "")

    def _reserve(self, lock: AnyLock, job_id: str, token: bytes) -> Actions[None]:
        if not self.job.rules.queues:
            info = yield lock.inspect
            if info.held:
                refused = verbs.Taken(f"lock {lock.name!r} is held", holder=info.holder)
                refused.metadata = info.metadata
                raise refused
            return
        place = reservation_of(lock, job_id, RESERVE_S)
        ask = place._request()
        ask.token = token
        alone = self.job.rules.unique == "both"
        driver: Any = lock._locks._driver
        steps = verbs.reserve(ask, lock.key, driver.server_clock, alone=alone)
        yield partial(driver.run, steps)

    def refuse(self, job_id: str | None, state: str, holder: str | None) -> Actions[Refused]:
        """It is not enqueued: tell whoever wants to know."""
        callback = self.job.rules.on_enqueue_failed
        result = None
        if callback is not None:
            result = yield self.job.telling(callback, self.args, self.kwargs, job_id=job_id)
        return Refused(job_id, state, holder, result)

    def confirm(self, token: str, delay_s: float) -> Actions[bool]:
        """The job is in its queue: it keeps its place; whether that was still there."""
        options.delay_s(delay_s, "delay")
        kept = bool(token)
        for lock in self.locks if token else ():
            ttl_s = delay_s + self.job.rules.queue_ttl
            kept &= yield from keep(lock, as_token(token), ttl_s)
        return kept

    def cancel(self, job_id: str | None, token: str | None) -> Actions[None]:
        """The job will not run: give up its place, and a lock that is kept for its retry."""
        if job_id is not None:
            raw = Delivery(job_id, token).owner
        elif token is None:
            raise InvalidArgument("say which job is cancelled: its job_id, its token, or both")
        elif token:
            raw = as_token(token)
        else:  # it was enqueued without unique=, and nothing is known of it
            return
        for lock in self.locks:
            yield from leave(lock, raw)
            ask = lock._request()
            ask.token = raw
            driver: Any = lock._locks._driver
            with suppress(LeaseLost):  # it waits for no retry
                yield partial(driver.run, protocol.release(ask, LeaseState(0, math.inf)))

    def died(self, job_id: str, token: str | None, pid: int | None) -> Actions[bool]:
        """The process that ran the job, or waited to, is dead; whether it had the lock."""
        owner = Delivery(job_id, token).owner
        found = False
        for lock in self.locks:
            holder = b""
            if pid is not None and lock._locks._settings.holder is None:
                holder = options.process_holder(pid)
            driver: Any = lock._locks._driver
            steps = verbs.died(lock._request(), job_text(job_id), owner, holder)
            found |= yield partial(driver.run, steps)
            yield from leave(lock, owner)
        return found

    def _undo(self, locks: list[AnyLock], token: str) -> Actions[None]:
        """Give up places; where that fails they end by themselves, in seconds."""
        for lock in locks if token else ():
            try:
                yield from leave(lock, as_token(token))
            except LockError as error:
                log.warning("the place of job %s ends by itself: %s", self.job.name, error)

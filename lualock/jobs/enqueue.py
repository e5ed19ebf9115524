"""The order of events of enqueueing a job: reserve, push, confirm.

* The reservation exists before the job is pushed, so that no two jobs are pushed.
* It lasts some seconds until it is confirmed, so that a crash before the push frees it.
* A job that was pushed but not confirmed is no worse off than one without a reservation: its run
  acquires the lock as any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lualock._core import options
from lualock._core.keys import name_of
from lualock._core.options import Seconds
from lualock.errors import InvalidArgument, LockError, LockUnavailable
from lualock.jobs import verbs
from lualock.jobs.actions import Actions
from lualock.jobs.declaration import AnyLock, AnyLocks, Job
from lualock.jobs.delivery import Delivery, Enqueued, Refused, Reserved
from lualock.jobs.identity import (
    encode_token,
    job_id_of,
    job_metadata,
    names_in,
    with_names,
)
from lualock.jobs.reservation import Reservation, release_held_by

log = logging.getLogger("lualock.jobs")


class Entry:
    """One job on its way into its queue, or out of it."""

    def __init__(
        self, job: Job, locks: AnyLocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.job, self.args, self.kwargs = job, args, kwargs
        self._locks = locks

    def _lock(self, token: str | None) -> AnyLock:
        """Return the locks of the names that travelled with the token, or of the arguments."""
        return self.job.queued_lock(self._locks, self.args, self.kwargs, names=names_in(token))

    def enqueue(
        self, push: Callable[[str], Any], job_id: str, token: str | None, delay: Seconds
    ) -> Actions[Enqueued | Refused]:
        """Push a job unless it conflicts with another one."""
        delay_s = options.delay_s(delay, "delay")
        if not options.is_function(push):
            raise InvalidArgument(f"push must be a function, not {type(push).__name__}")
        reserved = yield from self.reserve(job_id, token)
        if isinstance(reserved, Refused):
            return reserved
        try:
            result = yield partial(push, reserved.token)
        except GeneratorExit:
            raise
        except BaseException:
            yield from self._undo(reserved.token)
            raise
        if reserved.token:
            yield from self.confirm(reserved.token, delay_s)
        return Enqueued(job_id, reserved.token, result)

    def reserve(self, job_id: str, token: str | None) -> Actions[Reserved | Refused]:
        """Take the job's reservation, for some seconds."""
        job, declared = self.job, self.job.options
        job_metadata(job_id)
        lock = self.job.whole_lock(self._locks, self.args, self.kwargs)
        raw = lock.request().token if token is None else encode_token(token)
        try:
            if declared.reserves:
                alone = declared.unique == "both"
                yield from Reservation(lock, raw, job_id).reserve(alone=alone)
            elif declared.unique is not None:
                yield from self._refuse_beside_a_run(lock)
        except verbs.AlreadyHeld as other:
            log.info("job %s was not enqueued: %s", job.name, other)
            state = "running" if other.running else "queued"
            return (yield from self.refuse(job_id_of(other.metadata), state, other.holder))
        except LockUnavailable as error:
            if declared.when_unavailable == "raise":
                raise
            if declared.when_unavailable == "skip":
                log.warning("job %s was not enqueued: %s", job.name, error)
                return (yield from self.refuse(None, "unavailable", None))
            log.warning("job %s is enqueued without a reservation: %s", job.name, error)
            return Reserved(job_id, "")
        names = (name_of(part.locks.prefix, part.key) for part in lock.parts)
        return Reserved(job_id, with_names(raw, names) if declared.keeps else "")

    def _refuse_beside_a_run(self, lock: AnyLock) -> Actions[None]:
        for part in lock.parts:
            info = yield part.inspect
            if info.held:
                refused = verbs.AlreadyHeld(f"lock {part.name!r} is held", holder=info.holder)
                refused.metadata = info.metadata
                raise refused

    def refuse(self, job_id: str | None, state: str, holder: str | None) -> Actions[Refused]:
        """Report a job that is not enqueued, and call ``on_enqueue_failed``."""
        callback = self.job.options.on_enqueue_failed
        result = None
        if callback is not None:
            result = yield self.job.bind_callback(callback, self.args, self.kwargs, job_id=job_id)
        return Refused(job_id, state, holder, result)

    def confirm(self, token: str, delay: Seconds) -> Actions[bool]:
        """Extend the reservation of a job in its queue; return whether it still existed."""
        delay_s = options.delay_s(delay, "delay")
        if not token or not self.job.options.reserves:
            return False
        ttl_s = delay_s + self.job.options.queue_ttl_s
        return (yield from Reservation(self._lock(token), encode_token(token)).extend(ttl_s))

    def cancel(self, job_id: str | None, token: str | None) -> Actions[None]:
        """Release what a job that will not run has: its reservation, and a lock for its retry."""
        if job_id is not None:
            raw = Delivery(job_id, token).owner
        elif token is None:
            raise InvalidArgument(
                "could not cancel a job: nothing says which job is cancelled. Pass its job_id, its "
                "token, or both"
            )
        elif token:
            raw = encode_token(token)
        else:  # it was enqueued without unique=, and nothing is known about it
            return
        lock = self._lock(token)
        yield from Reservation(lock, raw).release()
        yield from release_held_by(lock, raw)

    def died(self, job_id: str, token: str | None, pid: int | None) -> Actions[bool]:
        """Release the lock of a job whose process is dead; return whether it had the lock."""
        owner = Delivery(job_id, token).owner
        found = False
        names = names_in(token)
        whole = self.job.whole_lock(self._locks, self.args, self.kwargs, names=names)
        for lock in whole.parts:
            holder = b"" if pid is None else lock.holder_in(pid)
            steps = verbs.died(lock.request(), job_metadata(job_id), owner, holder)
            found |= yield partial(lock.run, steps)
        yield from Reservation(self._lock(token), owner).release()
        return found

    def _undo(self, token: str) -> Actions[None]:
        """Release the reservation; if that fails, it expires on its own in seconds."""
        if not token or not self.job.options.reserves:
            return
        try:
            yield from Reservation(self._lock(token), encode_token(token)).release()
        except LockError as error:
            log.warning("the reservation of job %s expires on its own: %s", self.job.name, error)

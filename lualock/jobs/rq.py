"""RQ: jobs that have their lock in its workers. ``pip install 'lualock[rq]'``.

::

    @locked
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    def rebuild(shop_id): ...

    enqueue(queue, rebuild, 7)

A policy that delivers a job again needs a worker with a scheduler (``rq worker --with-scheduler``),
as RQ's own retries do. The token of a queued job travels in its ``meta``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from contextvars import ContextVar
from datetime import timedelta
from typing import Any
from uuid import uuid4

import rq
from rq.job import Job, get_current_job

from lualock.jobs.bound import SYSTEM, JobAdapter, alone, bound, bound_in
from lualock.jobs.terms import Delivery, Enqueued, Refused, RetryLater, token_of

META = "lualock"
SYNC = "sync"
"""The worker of a queue with ``is_async=False``, which tries nothing again."""

log = logging.getLogger("lualock.jobs")

# Whether this code is part of the run of a delivery, which is of that run alone.
_taken: ContextVar[bool] = ContextVar("lualock_rq_taken", default=False)


def locked(job: Any) -> Any:
    """What RQ is to run: the function, or the :class:`lualock.LockedJob`, behind its lock."""
    work = alone(job)

    @functools.wraps(work.body)
    def perform(*args: Any, **kwargs: Any) -> Any:
        delivered = None if _taken.get() else get_current_job()
        if delivered is not None and getattr(delivered.func, "__lualock__", None) is not work:
            delivered = None  # another job calls this one
        before = _taken.set(_taken.get() or delivered is not None)
        try:
            result = work.run(args, kwargs, None if delivered is None else _delivery(delivered))
            return asyncio.run(result) if work.asynchronous else result
        except RetryLater as later:
            if delivered is None or later.job_id != delivered.id:  # of a job that this one calls
                raise
            if delivered.worker_name == SYNC:
                removed(delivered)
                raise
            return _again(delivered, later)
        finally:
            _taken.reset(before)

    perform.__lualock__ = work  # type: ignore[attr-defined]  # what bound() looks for
    setattr(perform, SYSTEM, "rq")
    if isinstance(job, type):
        # RQ finds what it runs by its name, which is to lead to this and not to the class.
        perform.__module__, perform.__qualname__ = job.__module__, f"{job.__qualname__}.delivered"
        job.delivered = staticmethod(perform)  # type: ignore[attr-defined]
        return job
    return perform


def enqueue(queue: rq.Queue, job: Any, /, *args: Any, **options: Any) -> Enqueued | Refused:
    """``queue.enqueue(job, ...)`` unless another job is in its way; ``result`` is RQ's job."""
    return enqueue_in(queue, timedelta(), job, *args, **options)


def enqueue_in(
    queue: rq.Queue, delay: timedelta, job: Any, /, *args: Any, **options: Any
) -> Enqueued | Refused:
    """``queue.enqueue_in(delay, job, ...)`` unless another job is in its way."""
    own = isinstance(job, type) and "delivered" in vars(job)  # and not of what it inherits from
    function = job.delivered if own else job
    work = bound_in("rq", function)
    # As RQ tells its own options from the job's arguments: by their names.
    names = {"job_timeout", *inspect.signature(queue.enqueue_call).parameters} - {"timeout", "func"}
    told = {name: options.pop(name) for name in names & options.keys()}
    args = told.pop("args", None) or args
    kwargs = told.pop("kwargs", None) or options
    job_id = told.pop("job_id", None) or str(uuid4())
    meta = told.pop("meta", None) or {}

    def push(token: str) -> Job:
        told["meta"] = meta | ({META: token} if token else {})
        send = functools.partial(queue.enqueue_in, delay) if delay else queue.enqueue
        return send(function, args=args, kwargs=kwargs, job_id=job_id, **told)

    return work.enqueue(push, args, kwargs, job_id=job_id, delay=max(0.0, delay.total_seconds()))


def removed(job: Job) -> None:
    """A job was cancelled, deleted, or its queue emptied: give up its place in the queue."""
    token = job.meta.get(META) or token_of(job.id)  # of its lock between two attempts
    bound(job.func).cancel(job.args, job.kwargs, token=token)


def horse_killed(job: Job, pid: int, status: int, usage: Any) -> None:
    """For ``Worker(work_horse_killed_handler=...)``: free the lock at once, not when it expires."""
    try:
        work = getattr(job.func, "__lualock__", None)
        if isinstance(work, JobAdapter):
            token = job.meta.get(META)
            work.died(job.args, job.kwargs, job_id=job.id, token=token, pid=pid)
    except Exception:  # whatever it raises would end the worker
        log.exception("the lock of job %s, which was killed, ends by itself", job.id)


def _delivery(job: Job) -> Delivery:
    if job.worker_name == SYNC:
        return Delivery(job.id, job.meta.get(META))
    return Delivery(
        job.id,
        job.meta.get(META),
        will_retry=lambda error: job.get_retry_interval() if job.should_retry else None,
        result_retry=functools.partial(_result_retry, job),
    )


def _result_retry(job: Job, result: Any) -> float | None:
    """When RQ runs a job again that returned this."""
    done = job.number_of_retries or 0
    if not isinstance(result, rq.Retry) or (done and done >= result.max):
        return None
    return rq.Retry.get_interval(done, result.intervals)


def _again(job: Job, later: RetryLater) -> rq.Retry:
    # What the job itself returns as a Retry is counted, and this is to be none of that.
    job.number_of_retries = (job.number_of_retries or 0) - 1
    return rq.Retry(max=sys.maxsize, interval=[later.delay_s])  # type: ignore[list-item]

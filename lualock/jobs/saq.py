"""SAQ: jobs that have their lock in its workers. ``pip install 'lualock[saq]'``.

::

    @locked
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    async def rebuild(*, shop_id): ...   # without ctx: see context()

    settings = {"queue": queue, "functions": [rebuild]}

    await enqueue(queue, rebuild, shop_id=7)

The token of a queued job travels in its ``meta``.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import saq
from saq.job import Job
from saq.utils import now_seconds

from lualock.jobs.bound import alone, bound
from lualock.jobs.in_thread import run_in_thread
from lualock.jobs.terms import Delivery, Enqueued, Refused, RetryLater, token_of

META = "lualock"
OWN_DELAY = "lualock_retry"

_context: ContextVar[Any] = ContextVar("lualock_saq_context")


def context() -> Any:
    """In a job: the ``ctx`` of SAQ, which a locked function does not get as an argument."""
    return _context.get()


def locked(job: Any) -> Callable[..., Any]:
    """What SAQ is to run: the function, or the ``LockedJob``, behind its lock."""
    work = alone(job)

    @functools.wraps(work.body)
    async def perform(ctx: Any, **kwargs: Any) -> Any:
        delivered: Job | None = ctx.get("job")
        # Else this job calls itself, or another one it, with its own ctx; or nothing of SAQ does.
        if _context.get({}).get("job") is delivered:
            delivered = None
        delivery = None if delivered is None else _delivery(delivered, ctx["worker"])
        before = _context.set(ctx)
        try:
            if work.asynchronous:
                return await work.run((), kwargs, delivery)
            return await run_in_thread(work, (), kwargs, delivery)
        except RetryLater as later:
            if delivered is not None and later.job_id == delivered.key:  # not of a job it calls
                # SAQ has no other way to say when, and counts every delivery; this is to be none.
                delivered.meta[OWN_DELAY] = [delivered.retry_delay, delivered.retry_backoff]
                delivered.retry_delay, delivered.retry_backoff = later.delay_s, False
                delivered.attempts = min(delivered.attempts, delivered.retries) - 1
            raise
        finally:
            _context.reset(before)

    if isinstance(job, type):
        perform.__name__, perform.__qualname__ = job.__name__, job.__qualname__
    perform.__lualock__ = work  # type: ignore[attr-defined]  # what bound() looks for
    return perform


def _delivery(job: Job, worker: saq.Worker[Any]) -> Delivery:
    if OWN_DELAY in job.meta:
        job.retry_delay, job.retry_backoff = job.meta.pop(OWN_DELAY)

    def retry_s(error: BaseException) -> float | None:
        """In how many seconds SAQ runs the job again that raised this."""
        run = worker.job_task_contexts.get(job)
        aborted = run is not None and run["aborted"] is not None
        stopped = isinstance(error, asyncio.CancelledError) and worker.event.is_set()
        # What a worker that stops interrupts it puts back, whatever was said of retries.
        return job.next_retry_delay() if not aborted and (stopped or job.retryable) else None

    return Delivery(job.key, job.meta.get(META), retry_s)


class _Exists(Exception):
    """SAQ has a job of that key."""


async def enqueue(
    queue: saq.Queue, job: Any, /, *, _function: str | None = None, **options: Any
) -> Enqueued | Refused:
    """``queue.enqueue(name of the job, ...)`` unless another is in its way.

    ``result`` is SAQ's job. Arguments with the name of a property of SAQ's jobs are SAQ's, as ever.
    ``_function`` is the job's name there, if it was given one.
    """
    work = bound(job)
    told = {name: options.pop(name) for name in list(options) if name in Job.__dataclass_fields__}
    made = Job(_function or job.__qualname__, kwargs=told.pop("kwargs", {}) | options, **told)

    async def push(token: str) -> Job:
        if token:
            made.meta[META] = token
        pushed = await queue.enqueue(made)
        if pushed is None:
            raise _Exists
        return pushed

    delay = max(0.0, made.scheduled - now_seconds())
    try:
        return await work.enqueue_async(push, (), made.kwargs, job_id=made.key, delay=delay)
    except _Exists:
        return await work.refuse_async((), made.kwargs, job_id=made.key)


async def removed(job: Any, job_of_saq: Job) -> None:
    """A queued job was aborted: give up its place in the queue."""
    token = job_of_saq.meta.get(META) or token_of(job_of_saq.key)  # of its lock between attempts
    await bound(job).cancel_async((), job_of_saq.kwargs or {}, token=token)

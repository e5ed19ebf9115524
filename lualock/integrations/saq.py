"""SAQ: run jobs under their locks in SAQ's workers. ``pip install 'lualock[saq]'``.

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

from lualock import jobs
from lualock.integrations._adapters import innermost_adapter, with_adapter
from lualock.integrations._in_thread import run_in_thread
from lualock.jobs import Delivery, Enqueued, Refused, RetryLater, token_of

_META = "lualock"
_OWN_DELAY = "lualock_retry"

_context: ContextVar[Any] = ContextVar("lualock_saq_context")


def context() -> Any:
    """Return the ``ctx`` of SAQ inside a job; a locked function does not get it as an argument."""
    return _context.get()


def locked(job: Any) -> Callable[..., Any]:
    """Return the function that SAQ runs: a function or ``LockedJob``, under its lock."""
    adapter = innermost_adapter(job)

    @functools.wraps(adapter.body)
    async def perform(ctx: Any, **kwargs: Any) -> Any:
        delivered: Job | None = ctx.get("job")
        # Otherwise a job calls this one with its own ctx, or the caller is not SAQ.
        if _context.get({}).get("job") is delivered:
            delivered = None
        delivery = None if delivered is None else _delivery(delivered, ctx["worker"])
        reset_token = _context.set(ctx)
        try:
            if adapter.asynchronous:
                return await adapter.run((), kwargs, delivery)
            return await run_in_thread(adapter, (), kwargs, delivery)
        except RetryLater as later:
            if delivered is not None and later.is_of(delivery):
                # SAQ takes the delay from the job, and counts every delivery; this must not count.
                delivered.meta[_OWN_DELAY] = [delivered.retry_delay, delivered.retry_backoff]
                delivered.retry_delay, delivered.retry_backoff = later.delay_s, False
                delivered.attempts = min(delivered.attempts, delivered.retries) - 1
            raise
        finally:
            _context.reset(reset_token)

    return with_adapter(perform, adapter, job)


def _delivery(job: Job, worker: saq.Worker[Any]) -> Delivery:
    if _OWN_DELAY in job.meta:
        job.retry_delay, job.retry_backoff = job.meta.pop(_OWN_DELAY)

    def retry_s(error: BaseException) -> float | None:
        """Return in how many seconds SAQ retries a job that raised this, or ``None``."""
        run = worker.job_task_contexts.get(job)
        aborted = run is not None and run["aborted"] is not None
        stopped = isinstance(error, asyncio.CancelledError) and worker.event.is_set()
        # A worker that stops puts an interrupted job back, even if it has no retries left.
        return job.next_retry_delay() if not aborted and (stopped or job.retryable) else None

    return Delivery(job.key, job.meta.get(_META), retry_s)


class _Exists(Exception):
    """SAQ has a job with that key already."""


async def enqueue(
    queue: saq.Queue, job: Any, /, *, _function: str | None = None, **options: Any
) -> Enqueued | Refused:
    """Call ``queue.enqueue(name of the job, ...)`` unless the job conflicts with another one.

    ``result`` is SAQ's job. As in SAQ, arguments with the name of a property of SAQ's jobs are
    SAQ's. ``_function`` is the job's name in SAQ, if it has one of its own there.
    """
    adapter = jobs.adapter(job)
    fields = {name: options.pop(name) for name in list(options) if name in Job.__dataclass_fields__}
    kwargs = fields.pop("kwargs", {}) | options
    new_job = Job(_function or job.__qualname__, kwargs=kwargs, **fields)

    async def push(token: str) -> Job:
        if token:
            new_job.meta[_META] = token
        pushed = await queue.enqueue(new_job)
        if pushed is None:
            raise _Exists
        return pushed

    delay = max(0.0, new_job.scheduled - now_seconds())
    try:
        return await adapter.enqueue_async(
            push, (), new_job.kwargs, job_id=new_job.key, delay=delay
        )
    except _Exists:
        return await adapter.refuse_async((), new_job.kwargs, job_id=new_job.key)


async def removed(job: Any, job_of_saq: Job) -> None:
    """Release the reservation of a queued job that was aborted."""
    # Without a token in `meta`, this is the token of its lock between two attempts.
    token = job_of_saq.meta.get(_META) or token_of(job_of_saq.key)
    await jobs.adapter(job).cancel_async((), job_of_saq.kwargs or {}, token=token)

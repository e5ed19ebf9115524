"""arq: jobs that have their lock in its workers. ``pip install 'lualock[arq]'``.

::

    @locked
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    async def rebuild(shop_id): ...   # without ctx: see context()

    class WorkerSettings:
        functions = [rebuild]

    await enqueue(pool, rebuild, 7)

The lock is taken by the function: an error in ``on_job_start`` would end the whole worker. A job
has no room for a token, so its place has one that is made of its id.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import arq
from arq.constants import retry_key_prefix
from arq.jobs import Job, JobStatus
from arq.utils import timestamp_ms

from lualock.errors import InvalidArgument, LockError
from lualock.jobs.bound import JobAdapter, alone, bound
from lualock.jobs.terms import Delivery, Enqueued, Refused, RetryLater, token_of

_context: ContextVar[dict[Any, Any]] = ContextVar("lualock_arq_context")


def context() -> dict[Any, Any]:
    """In a job: the ``ctx`` of arq, which a locked function does not get as an argument."""
    return _context.get()


def locked(job: Any) -> Callable[..., Any]:
    """What arq is to run: the coroutine function, or the ``LockedJob``, behind its lock."""
    work = alone(job)
    if not work.asynchronous:
        raise InvalidArgument(f"job {work.name} must be a coroutine function, as arq wants it")

    @functools.wraps(work.body)
    async def perform(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        delivery, job_id = None, ctx.get("job_id")
        # Else this job calls itself, or another one it, with its own ctx; or nothing of arq does.
        if job_id is not None and _context.get({}).get("job_id") != job_id:
            delivery = Delivery(job_id, will_retry=functools.partial(_retry_s, ctx))
        before = _context.set(ctx)
        try:
            return await work.run(args, kwargs, delivery)
        except RetryLater as later:
            if delivery is None or later.job_id != delivery.job_id:  # of a job that it calls
                raise
            if not _tries_again(_told(delivery.job_id)):
                await _leave(work, args, kwargs, delivery)
                raise
            try:
                # arq counts every delivery as a try, and this was none.
                await ctx["redis"].decr(retry_key_prefix + ctx["job_id"])
            except Exception:  # not where it is cancelled: then it comes back
                await _leave(work, args, kwargs, delivery)
                raise
            raise arq.Retry(defer=later.delay_s) from None
        finally:
            _context.reset(before)

    if isinstance(job, type):
        perform.__name__, perform.__qualname__ = job.__name__, job.__qualname__
    perform.__lualock__ = work  # type: ignore[attr-defined]  # what bound() looks for
    return perform


async def _leave(work: JobAdapter, args: Any, kwargs: Any, delivery: Delivery) -> None:
    """Give up what is kept for a job that does not come back."""
    with suppress(LockError):  # it ends by itself then
        await work.cancel_async(args, kwargs, job_id=delivery.job_id)


async def enqueue(
    pool: arq.ArqRedis, job: Any, /, *args: Any, _function: str | None = None, **options: Any
) -> Enqueued | Refused:
    """``pool.enqueue_job(name of the job, ...)`` unless another is in its way.

    ``result`` is arq's job. Arguments that begin with ``_`` are arq's, but for ``_function``: its
    name there, if it was given one by ``arq.func``.
    """
    work = bound(job)
    kwargs = {name: value for name, value in options.items() if not name.startswith("_")}
    job_id = options.pop("_job_id", None)
    if job_id is not None:
        status = await Job(job_id, pool).status()
        if status is not JobStatus.not_found:  # arq would not push it
            running = status is JobStatus.in_progress
            return await _refused(work, args, kwargs, job_id, "running" if running else "queued")
    job_id = job_id or uuid4().hex
    name = _function or job.__qualname__
    entry = await work.enqueue_async(
        lambda token: pool.enqueue_job(name, *args, _job_id=job_id, **options),
        args,
        kwargs,
        job_id=job_id,
        token=token_of(job_id),
        delay=_delay_s(options.get("_defer_by"), options.get("_defer_until")),
    )
    if not isinstance(entry, Enqueued) or entry.result is not None:
        return entry
    # Another was pushed with this id meanwhile; of equal arguments, it has the place that we took.
    there = await Job(job_id, pool).info()
    same = there is not None and there.function == name
    status = await Job(job_id, pool).status()
    begun = status in (JobStatus.in_progress, JobStatus.complete)  # and it had its place before
    if begun or not same or work.lock(there.args, there.kwargs).key != work.lock(args, kwargs).key:
        await work.cancel_async(args, kwargs, token=token_of(job_id))
    return await _refused(work, args, kwargs, job_id, "queued")


async def _refused(work: JobAdapter, args: Any, kwargs: Any, job_id: str, state: str) -> Refused:
    """arq has a job of that id."""
    return await work.refuse_async(args, kwargs, job_id=job_id, state=state)


async def removed(job: Any, job_id: str, /, *args: Any, **kwargs: Any) -> None:
    """A queued job was aborted or removed: give up its place in the queue."""
    await bound(job).cancel_async(args, kwargs, token=token_of(job_id))


def _retry_s(ctx: dict[Any, Any], error: BaseException) -> float | None:
    """In how many seconds arq runs a job again that raised this."""
    job_id = ctx["job_id"]
    told = _told(job_id)
    if not _tries_again(told) or ctx["job_try"] >= told.get("max_tries", 5):  # its default
        return None
    if isinstance(error, asyncio.CancelledError) and told:
        # For its own end, then; else it was aborted, or took too long.
        in_time = timestamp_ms() - told["start_ms"] < told["timeout_s"] * 1000
        return 0.0 if in_time and job_id not in told["self"].aborting_tasks else None
    if not isinstance(error, arq.Retry | arq.worker.RetryJob):
        return None
    return float(getattr(error, "defer_score", None) or 0) / 1000


def _tries_again(told: dict[str, Any]) -> bool:
    """Whether a worker tries anything again."""
    return not told or bool(told["self"].retry_jobs)


def _told(job_id: str) -> dict[str, Any]:
    """What arq's worker knows of a job that it runs. It tells its functions little of what it was
    told, or what ``arq.func`` was, so we look at it where it runs the job."""
    for task in asyncio.all_tasks():
        running: Any = task.get_coro()
        while running is not None:  # what else wraps it awaits it
            frame = getattr(running, "cr_frame", None)
            if frame is not None and frame.f_code.co_name == "run_job":
                told: dict[str, Any] = dict(frame.f_locals)
                if told.get("job_id") == job_id and "start_ms" in told:
                    return told
            running = getattr(running, "cr_await", None)
    return {}


def _delay_s(defer_by: Any, defer_until: datetime | None) -> float:
    if defer_until is not None:
        return max(0.0, (defer_until - datetime.now(defer_until.tzinfo)).total_seconds())
    if isinstance(defer_by, timedelta):
        defer_by = defer_by.total_seconds()
    return max(0.0, float(defer_by or 0.0))

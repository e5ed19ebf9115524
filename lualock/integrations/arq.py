"""arq: run jobs under their locks in arq's workers. ``pip install 'lualock[arq]'``.

::

    @locked
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    async def rebuild(shop_id): ...   # without ctx: see context()

    class WorkerSettings:
        functions = [rebuild]

    await enqueue(pool, rebuild, 7)

The function itself takes the lock, because an error in ``on_job_start`` ends the whole worker. The
token of a queued job travels as an argument, which the job does not get. It is derived from the
job's id, for a job that is removed by its id.
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

from lualock import jobs
from lualock.errors import InvalidArgument, LockError
from lualock.integrations._adapters import CARRIED, innermost_adapter, with_adapter
from lualock.jobs import Delivery, Enqueued, JobAdapter, Refused, RetryLater, token_of

_context: ContextVar[dict[Any, Any]] = ContextVar("lualock_arq_context")


def context() -> dict[Any, Any]:
    """Return the ``ctx`` of arq inside a job; a locked function does not get it as an argument."""
    return _context.get()


def locked(job: Any) -> Callable[..., Any]:
    """Return the function that arq runs: a coroutine function or ``LockedJob``, under its lock."""
    adapter = innermost_adapter(job)
    if not adapter.asynchronous:
        raise InvalidArgument(
            f"could not make an arq job of {adapter.name}: it is not a coroutine function. Declare "
            "it as 'async def'"
        )

    @functools.wraps(adapter.body)
    async def perform(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        delivery, job_id, token = None, ctx.get("job_id"), kwargs.pop(CARRIED, None)
        # Otherwise a job calls this one with its own ctx, or the caller is not arq.
        if job_id is not None and _context.get({}).get("job_id") != job_id:
            delivery = Delivery(job_id, token, functools.partial(_retry_s, ctx))
        reset_token = _context.set(ctx)
        try:
            return await adapter.run(args, kwargs, delivery)
        except RetryLater as later:
            if delivery is None or not later.is_of(delivery):
                raise
            if not _retries_jobs(_worker_state(delivery.job_id)):
                await _cancel(adapter, args, kwargs, delivery)
                raise
            try:
                # arq counts every delivery as a try, but this one did not run the job.
                await ctx["redis"].decr(retry_key_prefix + ctx["job_id"])
            except Exception:  # not CancelledError: arq delivers a cancelled job again
                await _cancel(adapter, args, kwargs, delivery)
                raise
            raise arq.Retry(defer=later.delay_s) from None
        finally:
            _context.reset(reset_token)

    return with_adapter(perform, adapter, job)


async def _cancel(adapter: JobAdapter, args: Any, kwargs: Any, delivery: Delivery) -> None:
    """Release what is kept for a job that does not come back."""
    with suppress(LockError):  # it expires on its own then
        await adapter.cancel_async(args, kwargs, job_id=delivery.job_id, token=delivery.token)


async def enqueue(
    pool: arq.ArqRedis, job: Any, /, *args: Any, _function: str | None = None, **options: Any
) -> Enqueued | Refused:
    """Call ``pool.enqueue_job(name of the job, ...)`` unless the job conflicts with another one.

    ``result`` is arq's job. Arguments that begin with ``_`` are arq's, except ``_function``: the
    job's name in arq, if ``arq.func`` gave it one.
    """
    adapter = jobs.adapter(job)
    kwargs = {name: value for name, value in options.items() if not name.startswith("_")}
    job_id = options.pop("_job_id", None)
    if job_id is not None:
        status = await Job(job_id, pool).status()
        if status is not JobStatus.not_found:  # arq does not push a second one
            running = status is JobStatus.in_progress
            return await _refused(adapter, args, kwargs, job_id, "running" if running else "queued")
    job_id = job_id or uuid4().hex
    name = _function or job.__qualname__

    def push(token: str) -> Any:
        carried = {CARRIED: token} if token else {}
        return pool.enqueue_job(name, *args, _job_id=job_id, **options, **carried)

    entry = await adapter.enqueue_async(
        push,
        args,
        kwargs,
        job_id=job_id,
        token=token_of(job_id),
        delay=_delay_s(options.get("_defer_by"), options.get("_defer_until")),
    )
    if not isinstance(entry, Enqueued) or entry.result is not None:
        return entry
    # Another job with this id was pushed meanwhile. With equal arguments, this reservation is its.
    other = await Job(job_id, pool).info()
    same = other is not None and other.function == name
    status = await Job(job_id, pool).status()
    begun = status in (JobStatus.in_progress, JobStatus.complete)  # its reservation was earlier
    if (
        begun
        or not same
        or adapter.lock(other.args, _own(other.kwargs)).key != adapter.lock(args, kwargs).key
    ):
        await adapter.cancel_async(args, kwargs, token=token_of(job_id))
    return await _refused(adapter, args, kwargs, job_id, "queued")


def _own(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the job's own arguments, without the token that travels among them."""
    return {name: value for name, value in kwargs.items() if name != CARRIED}


async def _refused(adapter: JobAdapter, args: Any, kwargs: Any, job_id: str, state: str) -> Refused:
    """Report that arq has a job with that id already."""
    return await adapter.refuse_async(args, kwargs, job_id=job_id, state=state)


async def removed(job: Any, job_id: str, /, *args: Any, **kwargs: Any) -> None:
    """Release the reservation of a queued job that was aborted or removed."""
    await jobs.adapter(job).cancel_async(args, kwargs, token=token_of(job_id))


def _retry_s(ctx: dict[Any, Any], error: BaseException) -> float | None:
    """Return in how many seconds arq runs a job again that raised this, or ``None``."""
    job_id = ctx["job_id"]
    state = _worker_state(job_id)
    if not _retries_jobs(state) or ctx["job_try"] >= state.get("max_tries", 5):  # arq's default
        return None
    if isinstance(error, asyncio.CancelledError) and state:
        # The worker stops. Otherwise the job was aborted, or took too long.
        in_time = timestamp_ms() - state["start_ms"] < state["timeout_s"] * 1000
        return 0.0 if in_time and job_id not in state["self"].aborting_tasks else None
    if not isinstance(error, arq.Retry | arq.worker.RetryJob):
        return None
    return float(getattr(error, "defer_score", None) or 0) / 1000


def _retries_jobs(state: dict[str, Any]) -> bool:
    """Return whether a worker retries jobs at all."""
    return not state or bool(state["self"].retry_jobs)


def _worker_state(job_id: str) -> dict[str, Any]:
    """Return the local variables of the worker that runs a job.

    arq passes few of its own settings, and few of those of ``arq.func``, to a job.
    """
    for task in asyncio.all_tasks():
        running: Any = task.get_coro()
        while running is not None:  # a wrapper of it awaits it
            frame = getattr(running, "cr_frame", None)
            if frame is not None and frame.f_code.co_name == "run_job":
                state: dict[str, Any] = dict(frame.f_locals)
                if state.get("job_id") == job_id and "start_ms" in state:
                    return state
            running = getattr(running, "cr_await", None)
    return {}


def _delay_s(defer_by: Any, defer_until: datetime | None) -> float:
    if defer_until is not None:
        return max(0.0, (defer_until - datetime.now(defer_until.tzinfo)).total_seconds())
    if isinstance(defer_by, timedelta):
        defer_by = defer_by.total_seconds()
    return max(0.0, float(defer_by or 0.0))

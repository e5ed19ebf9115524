"""RQ: run jobs under their locks in RQ's workers. ``pip install 'lualock[rq]'``.

::

    @locked
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    def rebuild(shop_id): ...

    enqueue(queue, rebuild, 7)

A policy that delivers a job again needs a worker with a scheduler (``rq worker --with-scheduler``),
as RQ's own retries with an interval do. The token of a queued job travels in its ``meta``.
"""

from __future__ import annotations

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

from lualock import jobs
from lualock._core.options import Seconds, seconds
from lualock.errors import InvalidArgument
from lualock.integrations._adapters import SYSTEM, adapter_in, innermost_adapter, run_here
from lualock.jobs import Delivery, Enqueued, JobAdapter, Refused, RetryLater, token_of

_META = "lualock"
_SYNC = "sync"
"""The worker name of a queue with ``is_async=False``, which retries nothing."""

log = logging.getLogger("lualock.jobs")

# The job whose run this code is part of. Its delivery is not one of jobs that it calls.
_running_id: ContextVar[str | None] = ContextVar("lualock_rq_running_id", default=None)


def locked(job: Any) -> Any:
    """Return what RQ runs: the function, or the :class:`lualock.LockedJob`, under its lock.

    :raises InvalidArgument: ``job`` is a class that RQ's workers do not find by its name.
    """
    adapter = innermost_adapter(job)

    @functools.wraps(adapter.body)
    def perform(*args: Any, **kwargs: Any) -> Any:
        delivered = get_current_job()
        if delivered is not None and (
            delivered.id == _running_id.get()
            or getattr(delivered.func, "__lualock__", None) is not adapter
        ):
            delivered = None  # another job calls this one
        delivery = None if delivered is None else _delivery(delivered)
        reset_token = _running_id.set(_running_id.get() if delivered is None else delivered.id)
        try:
            return run_here(adapter, args, kwargs, delivery)
        except RetryLater as later:
            if delivered is None or not later.is_of(delivery):
                raise
            if delivered.worker_name == _SYNC:
                raise
            return _uncounted_retry(delivered, later)
        finally:
            _running_id.reset(reset_token)

    perform.__lualock__ = adapter  # type: ignore[attr-defined]  # for jobs.adapter()
    setattr(perform, SYSTEM, "rq")
    if isinstance(job, type):
        # RQ finds a function by its name, which must lead to `perform` and not to the class.
        perform.__module__, perform.__qualname__ = job.__module__, f"{job.__qualname__}.delivered"
        _check_name(adapter, perform)
        job.delivered = staticmethod(perform)  # type: ignore[attr-defined]
        return job
    return perform


def enqueue(queue: rq.Queue, job: Any, /, *args: Any, **options: Any) -> Enqueued | Refused:
    """Call ``queue.enqueue(job, ...)`` unless it conflicts with a job; ``result`` is RQ's job.

    :raises InvalidArgument: the job has a reservation while it is queued, and RQ would push it
        later: with ``pipeline=``, or in a commit mode of django-rq; or RQ's workers do not find the
        job by its name.
    """
    return enqueue_in(queue, 0, job, *args, **options)


def enqueue_in(
    queue: rq.Queue, delay: Seconds, job: Any, /, *args: Any, **options: Any
) -> Enqueued | Refused:
    """Call ``queue.enqueue_in(delay, job, ...)`` unless the job conflicts with another one.

    :raises InvalidArgument: as for :func:`enqueue`.
    """
    delay_s = seconds(delay, "delay")
    is_locked_class = isinstance(job, type) and "delivered" in vars(job)  # not of a base class
    function = job.delivered if is_locked_class else job
    adapter = adapter_in("rq", function)
    _check_name(adapter, function)
    # RQ recognizes its own options by their names; the rest are the job's arguments.
    names = _option_names(type(queue))
    rq_options = {name: options.pop(name) for name in names & options.keys()}
    if adapter.unique in ("queued", "both") and (later := _pushes_later(queue, rq_options)):
        # Nothing says whether it is pushed, so its reservation cannot be confirmed.
        how, advice = later
        raise InvalidArgument(
            f"could not enqueue job {adapter.name}: {how} it is pushed later, or never, and its "
            f"reservation would stay (unique={adapter.unique!r}). {advice}"
        )
    args = rq_options.pop("args", None) or args
    kwargs = rq_options.pop("kwargs", None) or options
    job_id = rq_options.pop("job_id", None) or str(uuid4())
    meta = rq_options.pop("meta", None) or {}

    def push(token: str) -> Job:
        rq_options["meta"] = meta | ({_META: token} if token else {})
        send = queue.enqueue
        if delay_s:
            send = functools.partial(queue.enqueue_in, timedelta(seconds=delay_s))
        return send(function, args=args, kwargs=kwargs, job_id=job_id, **rq_options)

    return adapter.enqueue(push, args, kwargs, job_id=job_id, delay=max(0.0, delay_s))


def _option_names(kind: type) -> set[str]:
    """Return the names of RQ's options. A queue of a subclass (django-rq) may only pass them on, so
    those of its base classes count as well."""
    calls = [vars(one)["enqueue_call"] for one in kind.__mro__ if "enqueue_call" in vars(one)]
    names = {name for call in calls for name in inspect.signature(call).parameters}
    return {"job_timeout", *names} - {"timeout", "func", "self"}


def _pushes_later(queue: rq.Queue, rq_options: dict[str, Any]) -> tuple[str, str] | None:
    """Return how a queue pushes a job after this call, and what to do; ``None``: it does so now."""
    if rq_options.get("pipeline") is not None:
        return "with pipeline=", "Enqueue it without pipeline="
    mode = getattr(queue, "_commit_mode", "auto")  # of django-rq
    if mode == "request_finished":
        return f"with COMMIT_MODE={mode!r}", "Enqueue it by a queue with commit_mode='auto'"
    if mode == "on_db_commit" and sys.modules["django.db"].connection.in_atomic_block:
        return "inside a transaction", "Enqueue it by transaction.on_commit(lambda: enqueue(...))"
    return None


def removed(job: Job) -> None:
    """Release the reservation of a job that was cancelled, deleted, or in an emptied queue."""
    token = job.meta.get(_META) or token_of(job.id)  # the token of its lock between two attempts
    jobs.adapter(job.func).cancel(job.args, job.kwargs, token=token)


def horse_killed(job: Job, pid: int, status: int, usage: Any) -> None:
    """Release the lock of a killed job; pass this as ``Worker(work_horse_killed_handler=...)``."""
    try:
        adapter = getattr(job.func, "__lualock__", None)
        if isinstance(adapter, JobAdapter):
            token = job.meta.get(_META)
            adapter.died(job.args, job.kwargs, job_id=job.id, token=token, pid=pid)
    except Exception:  # an error here ends the worker
        log.exception("the lock of killed job %s expires on its own", job.id)


def _check_name(adapter: JobAdapter, function: Any) -> None:
    """Refuse a function that RQ's workers do not find by its name.

    :raises InvalidArgument: it is in a class in a class, or in a function.
    """
    if function.__qualname__.count(".") > 1:
        raise InvalidArgument(
            f"could not make an RQ job of {adapter.name}: RQ's workers do not find "
            f"{function.__qualname__!r} by that name. Define it at the top of its module"
        )


def _delivery(job: Job) -> Delivery:
    if job.worker_name == _SYNC:
        return Delivery(job.id, job.meta.get(_META), redelivers=False)
    return Delivery(
        job.id,
        job.meta.get(_META),
        will_retry=lambda error: job.get_retry_interval() if job.should_retry else None,
        result_retry=functools.partial(_result_retry, job),
    )


def _result_retry(job: Job, result: Any) -> float | None:
    """Return in how many seconds RQ retries a job that returned this, or ``None``."""
    retries = job.number_of_retries or 0
    if not isinstance(result, rq.Retry) or (retries and retries >= result.max):
        return None
    return rq.Retry.get_interval(retries, result.intervals)


def _uncounted_retry(job: Job, later: RetryLater) -> rq.Retry:
    # RQ counts a Retry that a job returns, and this one must not count.
    job.number_of_retries = (job.number_of_retries or 0) - 1
    return rq.Retry(max=sys.maxsize, interval=[later.delay_s])  # type: ignore[list-item]

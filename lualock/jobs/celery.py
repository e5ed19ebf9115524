"""Celery: tasks that have their lock in its workers. ``pip install 'lualock[celery]'``.

::

    @app.task(base=LockedTask)
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    def rebuild(shop_id): ...

    rebuild.delay(7).refused  # None, or who is in its way

The token of a queued task travels in its headers. A task that was revoked gives up its place when a
worker comes to it; ``celery purge`` tells nobody, so places then end with ``queue_ttl``.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import celery
from celery import signals
from celery.exceptions import Retry
from celery.utils import uuid

from lualock.errors import InvalidArgument, LockError
from lualock.jobs.bound import JobAdapter, alone
from lualock.jobs.celery_retries import delay_s, failed, retry_s
from lualock.jobs.terms import Delivery, Enqueued, RetryLater

HEADER = "lualock"
BEGUN = "lualock_begun"
CANVAS = "chain", "chord", "group_id", "replaced_task_nesting"
"""The options of a task that others wait for: if it was refused, they would for ever."""

log = logging.getLogger("lualock.jobs")

# The delivery whose run this code is part of: it is of that run alone.
_taken: ContextVar[Any] = ContextVar("lualock_celery_taken", default=None)


class LockedTask(celery.Task):  # type: ignore[misc]  # Celery has no types
    """A task whose function was decorated with ``locks.job``; any other is as without this base.

    ``delay`` and ``apply_async`` return the result of the task that is there already where
    ``unique=`` refuses a new one. Their result's ``refused`` says so.
    """

    abstract = True
    Request = "lualock.jobs.celery_request:LockedRequest"
    work: JobAdapter | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        run = vars(cls).get("run")
        function = getattr(run, "__func__", run)
        if not hasattr(function, "__lualock__"):
            return
        if not isinstance(run, staticmethod):
            raise InvalidArgument(
                f"task {cls.__name__}: with bind=True the task itself would be one of the "
                "arguments that name its lock; leave it out, and use celery.current_task"
            )
        cls.work = alone(function)
        cls.run = staticmethod(_locked(cls.work))

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> Any:
        headers = dict(options.pop("headers", None) or {})
        push = functools.partial(super().apply_async, args, kwargs)
        again = task_id is not None and (HEADER in headers or task_id == self.request.id)
        if not again:  # of another task, which hands its headers on
            headers.pop(HEADER, None)
        part = any(options.get(key) is not None for key in CANVAS)
        # What is sent again has its place, or needs none.
        if self.work is None or again or part:
            return push(task_id=task_id, headers=headers or None, **options)
        task_id = task_id or uuid()

        def enter(token: str) -> Any:
            # Also an empty one: it tells a task that is sent again from a new one.
            return push(task_id=task_id, headers=headers | {HEADER: token}, **options)

        delay = max(0.0, delay_s(options))
        entry = self.work.enqueue(enter, args or (), kwargs or {}, job_id=task_id, delay=delay)
        if isinstance(entry, Enqueued):
            entry.result.refused = None
            return entry.result
        result = self.AsyncResult(entry.job_id or task_id)
        result.refused = entry
        return result


def _locked(work: JobAdapter) -> Callable[..., Any]:
    """What a worker runs."""

    @functools.wraps(work.body)
    def run(*args: Any, **kwargs: Any) -> Any:
        task, delivery = celery.current_task, None
        # Else another task calls this one, or it does so itself, or nothing of Celery does.
        ours = getattr(task, "work", None) is work and not task.request.called_directly
        request: Any = task.request if ours else None
        this = (request.id, request.retries) if ours else None
        if request is not None:
            setattr(request, BEGUN, True)
        taken = this == _taken.get()  # the task that calls itself directly has its request
        before = _taken.set(this or _taken.get())
        if request is not None and not taken:
            again_s = functools.partial(retry_s, task)
            delivery = Delivery(request.id, _token(request), again_s, failed=failed)
        try:
            result = work.run(args, kwargs, delivery)
            return asyncio.run(result) if work.asynchronous else result
        except RetryLater as later:
            if delivery is None or later.job_id != delivery.job_id:  # of a job that it calls
                raise
            again = later
        finally:
            _taken.reset(before)
        try:
            if request.is_eager:  # nothing delivers it again
                raise again
            # Sent again as it is, and not by task.retry(), which would count it.
            told = {"countdown": again.delay_s, "retries": request.retries}
            task.signature_from_request(request, **told).apply_async()
        except BaseException:
            with suppress(LockError):  # its place ends by itself then
                work.cancel(args, kwargs, job_id=delivery.job_id, token=delivery.token)
            raise
        raise Retry(str(again), when=again.delay_s)

    return run


@signals.task_failure.connect  # type: ignore[untyped-decorator]
def _never_began(sender: Any, **_: Any) -> None:
    """In the worker's process: a task failed; if that was before it began (its own ``before_start``
    raised), nobody else gives its place up."""
    work, request = getattr(sender, "work", None), getattr(sender, "request", None)
    if not isinstance(work, JobAdapter) or request is None or request.id is None:
        return  # (the main process tells of it, which celery_request sees)
    if not (request.called_directly or getattr(request, BEGUN, False)):
        _give_up(work, request)


def _token(request: Any) -> str | None:
    token: str | None = (request.headers or {}).get(HEADER)
    return token


@signals.task_revoked.connect  # type: ignore[untyped-decorator]
def _revoked(sender: Any, request: Any, terminated: bool = False, **_: Any) -> None:
    """In the worker's main process: a task will not begin."""
    work = getattr(sender, "work", None)
    if not terminated and isinstance(work, JobAdapter):  # what has begun, celery_request sees end
        _give_up(work, request)


def _give_up(work: JobAdapter, request: Any) -> None:
    """The place of a task that will not begin."""
    try:
        work.cancel(request.args, request.kwargs, job_id=request.id, token=_token(request))
    except LockError as error:
        log.warning("the place of task %s ends by itself: %s", request.id, error)

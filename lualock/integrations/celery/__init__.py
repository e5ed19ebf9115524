"""Celery: run tasks under their locks in Celery's workers. ``pip install 'lualock[celery]'``.

::

    @app.task(base=LockedTask)
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    def rebuild(shop_id): ...

    rebuild.delay(7).refused  # None, or the conflicting task

The token of a queued task travels in its headers. A revoked task releases its reservation when a
worker comes to it. ``celery purge`` notifies no process, so reservations then expire after
``queue_ttl``.
"""

from __future__ import annotations

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
from lualock.integrations._adapters import forget_unknown, innermost_adapter, run_here
from lualock.integrations.celery.bases import bases_with_own, request_class
from lualock.integrations.celery.retries import changes_lock, delay_s, failed, retry_s
from lualock.jobs import Delivery, Enqueued, JobAdapter, RetryLater

HEADER = "lualock"
_BEGUN = "lualock_begun"
_CANVAS = "chain", "chord", "group_id", "replaced_task_nesting"
"""The options of a task that other tasks wait for. Refusing it makes them wait for ever."""

log = logging.getLogger("lualock.jobs")

# The delivery whose run this code is part of. It belongs to that run, not to tasks that it calls.
_current_delivery: ContextVar[Any] = ContextVar("lualock_celery_delivery", default=None)


class LockedTask(celery.Task):  # type: ignore[misc]  # Celery has no types
    """A task whose function has ``locks.job``; another function makes an ordinary task.

    Both derive from their app's own ``Task`` class too, for instance that of a Django project.

    If ``unique=`` refuses a new task, ``delay`` and ``apply_async`` return the result of the task
    that is already queued or running. The result's ``refused`` is then set.
    """

    abstract = True
    Request: Any = "lualock.integrations.celery.request:LockedRequest"
    work: JobAdapter | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__bases__ = bases_with_own(cls)
        run = vars(cls).get("run")
        function = getattr(run, "__func__", run)
        if not hasattr(function, "__lualock__"):
            return
        if not isinstance(run, staticmethod):
            raise InvalidArgument(
                f"could not make task {cls.__name__}: with bind=True the task itself would be one "
                "of the arguments that name its lock. Leave it out, and use celery.current_task"
            )
        cls.__lualock__ = cls.work = innermost_adapter(function)  # for jobs.adapter()
        cls.run = staticmethod(_locked(cls.work))
        cls.Request = request_class(cls, LockedTask.Request)

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> Any:
        headers = dict(options.pop("headers", None) or {})
        push = functools.partial(super().apply_async, args, kwargs)
        resent = task_id is not None and (HEADER in headers or task_id == self.request.id)
        if not resent:  # the header is of another task, which passes its headers on
            headers.pop(HEADER, None)
        elif headers.get(HEADER) and self._changes_lock(task_id, args, kwargs):
            headers[HEADER] = headers[HEADER][
                :22
            ]  # without the names, which are of other arguments
        in_canvas = any(options.get(key) is not None for key in _CANVAS)
        # A task that is sent again has its reservation, or needs none.
        if self.work is None or resent or in_canvas:
            return push(task_id=task_id, headers=headers or None, **options)
        task_id = task_id or uuid()

        def push_with_token(token: str) -> Any:
            # Also an empty token: the header distinguishes a resent task from a new one.
            return push(task_id=task_id, headers=headers | {HEADER: token}, **options)

        delay = max(0.0, delay_s(options))
        entry = self.work.enqueue(
            push_with_token, args or (), kwargs or {}, job_id=task_id, delay=delay
        )
        if isinstance(entry, Enqueued):
            entry.result.refused = None
            return entry.result
        result = self.AsyncResult(entry.job_id or task_id)
        result.refused = entry
        return result

    def _changes_lock(self, task_id: str | None, args: Any, kwargs: Any) -> bool:
        """Return whether the task that runs now is retried with arguments of another lock."""
        runs = self.work is not None and task_id == self.request.id
        return runs and changes_lock(self, args, kwargs)


def _locked(adapter: JobAdapter) -> Callable[..., Any]:
    """Return the function that a worker runs."""

    @functools.wraps(adapter.body)
    def run(*args: Any, **kwargs: Any) -> Any:
        task, delivery = celery.current_task, None
        # Otherwise a task calls this one, or itself, or the caller is not Celery.
        delivered = getattr(task, "work", None) is adapter and not task.request.called_directly
        request: Any = task.request if delivered else None
        current = (request.id, request.retries) if delivered else None
        if request is not None:
            setattr(request, _BEGUN, True)
        nested = current == _current_delivery.get()  # a task that calls itself has its request
        reset_token = _current_delivery.set(current or _current_delivery.get())
        if request is not None and not nested:
            will_retry = functools.partial(retry_s, task)
            delivery = Delivery(
                request.id,
                _token(request),
                will_retry,
                failed=failed,
                redelivers=not request.is_eager,
            )
        try:
            return run_here(adapter, args, kwargs, delivery)
        except RetryLater as later:
            if delivery is None or not delivery.redelivers or not later.is_of(delivery):
                raise
            retry = later
        finally:
            _current_delivery.reset(reset_token)
        try:
            # Sent again as it is. task.retry() counts as a retry, and this delivery must not.
            options = {"countdown": retry.delay_s, "retries": request.retries}
            task.signature_from_request(request, **options).apply_async()
        except BaseException:
            with suppress(LockError):  # its reservation expires on its own then
                adapter.cancel(args, kwargs, job_id=delivery.job_id, token=delivery.token)
            raise
        raise Retry(str(retry), when=retry.delay_s)

    return run


@signals.task_failure.connect  # type: ignore[untyped-decorator]
def _never_began(sender: Any, **_: Any) -> None:
    """Release the reservation of a task that failed before it began, in the worker's process.

    Its own ``before_start`` raised, and no other code releases its reservation.
    """
    adapter, request = getattr(sender, "work", None), getattr(sender, "request", None)
    if not isinstance(adapter, JobAdapter) or request is None or request.id is None:
        return  # the signal came from the main process, and celery_request handles the task
    if not (request.called_directly or getattr(request, _BEGUN, False)):
        _release_reservation(adapter, request)


def _token(request: Any) -> str | None:
    token: str | None = (request.headers or {}).get(HEADER)
    return token


@signals.task_revoked.connect  # type: ignore[untyped-decorator]
def _revoked(sender: Any, request: Any, terminated: bool = False, **_: Any) -> None:
    """Release the reservation of a task that will not begin, in the worker's main process."""
    adapter = getattr(sender, "work", None)
    if terminated:  # it has begun, and celery_request sees its end
        return
    if isinstance(adapter, JobAdapter):
        _release_reservation(adapter, request)


@signals.task_unknown.connect  # type: ignore[untyped-decorator]
def _unknown(sender: Any, message: Any, id: str, **_: Any) -> None:
    """Release what a task holds that Celery throws away, because its function was renamed."""
    found = (getattr(task, "work", None) for task in sender.app.tasks.values())
    known = [work for work in found if isinstance(work, JobAdapter)]
    forget_unknown(known, id, message.headers.get(HEADER))


def _release_reservation(adapter: JobAdapter, request: Any) -> None:
    try:
        adapter.cancel(request.args, request.kwargs, job_id=request.id, token=_token(request))
    except LockError as error:
        log.warning("the reservation of task %s expires on its own: %s", request.id, error)

"""Huey: run tasks under their locks in Huey's consumer. ``pip install 'lualock[huey]'``.

::

    huey = RedisHuey()
    huey.task_wrapper_class = LockedTask

    @huey.task()
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    def rebuild(shop_id): ...

    rebuild.enqueue(7)  # or rebuild(7)

The task's function takes the lock, because Huey ignores errors of its signals and hooks. The token
of a queued task travels as an argument, which the job does not get. It is derived from the task's
id, for a task that is revoked by its id.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from datetime import datetime, timezone
from typing import Any

from huey import signals
from huey.api import Result, Task, TaskWrapper
from huey.exceptions import CancelExecution, RateLimitExceeded, RetryTask
from huey.storage import BlackHoleStorage
from huey.utils import normalize_time

from lualock import jobs
from lualock._core.options import Seconds
from lualock.errors import InvalidArgument, LockError
from lualock.integrations._adapters import CARRIED, innermost_adapter, is_outer, run_here
from lualock.jobs import Delivery, Enqueued, JobAdapter, Refused, RetryLater, token_of
from lualock.jobs.delivery import is_failure
from lualock.jobs.run import delivering

_BEGUN = "lualock_begun"
_DROPPED = signals.SIGNAL_REVOKED, signals.SIGNAL_EXPIRED, signals.SIGNAL_CANCELED

log = logging.getLogger("lualock.jobs")


class LockedTask(TaskWrapper):  # type: ignore[misc]  # Huey has no types
    """The task that ``@huey.task()`` makes of a function with ``locks.job``.

    Another function makes an ordinary task.
    """

    work: JobAdapter | None = None

    def __init__(
        self, huey: Any, func: Any, context: bool = False, name: str | None = None, **options: Any
    ) -> None:
        if hasattr(func, "__lualock__"):
            outer = func if is_outer(func) else None  # such as db_task of djhuey makes
            work = innermost_adapter(func) if outer is None else jobs.adapter(func)
            self.__lualock__ = self.work = work  # for jobs.adapter()
            if context:
                raise InvalidArgument(
                    f"could not make task {self.work.name}: with context=True the task would be "
                    "one of the arguments that name its lock. Leave it out"
                )
            run = _locked(self.work, huey, outer)
            run.__name__, run.__module__ = func.__name__, func.__module__  # also of a class
            func, context = run, True
        super().__init__(huey, func, context, name, **options)
        self._queue = huey
        if self.work is not None:
            huey.signal(*_DROPPED)(self._on_dropped)
            self.huey: Any = _Enqueuing(huey, self)

    def enqueue(self, *args: Any, **kwargs: Any) -> Enqueued | Refused:
        """Enqueue the task unless it conflicts with another one; ``result`` is Huey's result."""
        return self._enqueue(self.s(*args, **kwargs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Enqueue the task; if it is refused, return the result of the conflicting task."""
        return self._result(self.enqueue(*args, **kwargs))

    def schedule(
        self,
        args: Any = None,
        kwargs: Any = None,
        eta: Any = None,
        delay: Any = None,
        **options: Any,
    ) -> Any:
        """Schedule the task as Huey does; a refused task is treated as in a call."""
        if eta is None and delay is None:
            eta, delay = (args, None) if isinstance(args, datetime) else (None, args)
            args = None
        eta = normalize_time(eta, delay, self.huey.utc)
        return self.enqueue_made(self.task_class(args or (), kwargs or {}, eta=eta, **options))

    def _enqueue(self, task: Any) -> Enqueued | Refused:
        delay_s = _delay_s(task.eta, self.huey.utc)
        if self.work is None or _never_delivers(self.huey, delay_s):
            return Enqueued(task.id, "", self._queue.enqueue(task))

        def push(token: str) -> Any:
            if token:
                task.kwargs = {**task.kwargs, CARRIED: token}
            return self._queue.enqueue(task)

        return self.work.enqueue(
            push,
            task.args,
            task.kwargs,
            job_id=task.id,
            token=token_of(task.id),
            delay=delay_s,
        )

    def enqueue_made(self, task: Any) -> Any:
        """Enqueue a task that was made before, and return its result, as a call does."""
        return self._result(self._enqueue(task))

    def _result(self, entry: Enqueued | Refused) -> Any:
        if isinstance(entry, Enqueued):
            return entry.result
        return Result(self.huey, Task(id=entry.job_id)) if self.huey.results else None

    def _on_dropped(self, signal: str, task: Any, *_: Any) -> None:
        """Release the reservation of a task that will not begin.

        It was revoked, was cancelled by a hook, or came too late. A task that has begun, and then
        cancels itself, has already released what it holds.
        """
        if self.work is not None and isinstance(task, self.task_class) and not _begun(task):
            kwargs, token = _without_token(task.kwargs)
            _cancel(self.work, task.args, kwargs, task.id, token)


class _Enqueuing:
    """What a task has as its ``huey``, for code that enqueues by ``task.huey.enqueue``, as
    ``on_commit_task`` of djhuey does: the task's jobs are unique there, too."""

    def __init__(self, huey: Any, task: LockedTask) -> None:
        self._huey, self._task = huey, task

    def enqueue(self, task: Any) -> Any:
        own = isinstance(task, self._task.task_class)
        return self._task.enqueue_made(task) if own else self._huey.enqueue(task)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._huey, name)


def _locked(adapter: JobAdapter, huey: Any, outer: Any) -> Any:
    """Return the function that a consumer runs.

    :param outer: a function that calls the job, of a decorator above it; ``None``: there is none.
    """

    @functools.wraps(adapter.body)
    def run(*args: Any, **kwargs: Any) -> Any:
        delivery = None
        if isinstance(kwargs.get("task"), Task):  # Huey's, in place of an argument of that name
            task = kwargs.pop("task")
            if "task" in task.kwargs:
                kwargs["task"] = task.kwargs["task"]
            kwargs, token = _without_token(kwargs)
            setattr(task, _BEGUN, True)
            here = huey.immediate
            retry_s = functools.partial(_immediate_retry_s if here else _retry_s, task)
            delivery = Delivery(task.id, token, retry_s, failed=_failed, redelivers=not here)
        try:
            if outer is None:
                return run_here(adapter, args, kwargs, delivery)
            return _run_outer(adapter, outer, args, kwargs, delivery)
        except RetryLater as later:
            if delivery is None or not delivery.redelivers or not later.is_of(delivery):
                raise
            raise RetryTask(str(later), delay=later.delay_s) from None

    run.__lualock__ = adapter  # type: ignore[attr-defined]  # for a task of a task
    return run


def _run_outer(
    adapter: JobAdapter, outer: Any, args: Any, kwargs: Any, delivery: Delivery | None
) -> Any:
    """Call a decorator above a job. If it does not call the job, the job's reservation ends."""
    will_retry = False
    with delivering(adapter.job, delivery) as expected:
        try:
            result = outer(*args, **kwargs)
            return asyncio.run(result) if adapter.asynchronous else result
        except Exception as error:
            will_retry = delivery is not None and delivery.will_retry(error) is not None
            raise
        finally:
            if delivery is not None and not expected.begun and not will_retry:
                _cancel(adapter, args, kwargs, delivery.job_id, delivery.token)


def _cancel(adapter: JobAdapter, args: Any, kwargs: Any, task_id: str, token: str | None) -> None:
    """Release what a task holds that will not begin."""
    try:
        adapter.cancel(args, kwargs, token=token or token_of(task_id))
    except LockError as error:
        log.warning("the reservation of task %s expires on its own: %s", task_id, error)


def _without_token(kwargs: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the job's own arguments, and the token that travelled among them."""
    return {name: kwargs[name] for name in kwargs if name != CARRIED}, kwargs.get(CARRIED)


def _begun(task: Any) -> bool:
    return getattr(task, _BEGUN, False)


def _failed(error: BaseException) -> bool:
    return is_failure(error) and not isinstance(error, CancelExecution)


def _retry_s(task: Any, error: BaseException) -> Seconds | None:
    """Return in how many seconds Huey retries a task that raised this, or ``None``."""
    if not isinstance(error, Exception):  # Huey does not retry an interrupted task
        return None
    retries, delay_s = task.retries, task.retry_delay
    if isinstance(error, RetryTask):
        if error.eta:  # a naive time from the user is local
            return _delay_s(error.eta, utc=False)
        retries, delay_s = True, delay_s if error.delay is None else error.delay
    elif isinstance(error, CancelExecution):
        retries = retries if error.retry is None else error.retry
    elif isinstance(error, RateLimitExceeded):
        retries, delay_s = retries or error.retry, delay_s or error.delay
    return delay_s if retries else None


def _immediate_retry_s(task: Any, error: BaseException) -> Seconds | None:
    """Return 0 if Huey's immediate mode runs a task again that raised this, or ``None``.

    It does so at once. A task that should wait is put into a schedule, which no consumer reads.
    """
    waits = task.retry_delay or isinstance(error, RateLimitExceeded)
    if isinstance(error, RetryTask):
        waits = waits or error.eta or error.delay is not None
    return None if waits or _retry_s(task, error) is None else 0.0


def _never_delivers(huey: Any, delay_s: float) -> bool:
    """Return whether no consumer comes to a new task, so it needs no reservation."""
    return (huey.immediate and delay_s > 0) or isinstance(huey.storage, BlackHoleStorage)


def _delay_s(eta: datetime | None, utc: bool = True) -> float:
    """Return in how many seconds a task may begin.

    Huey's times are naive: in UTC, or local with ``utc=False``.
    """
    if eta is None:
        return 0.0
    now = datetime.now(eta.tzinfo or (timezone.utc if utc else None))
    return max(0.0, (eta - now.replace(tzinfo=eta.tzinfo)).total_seconds())

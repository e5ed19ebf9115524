"""taskiq: tasks that have their lock in its workers. ``pip install 'lualock[taskiq]'``.

::

    @locked(broker)
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    async def rebuild(shop_id): ...

    await enqueue(rebuild, 7)

The lock is taken by the function: the hook ``pre_execute`` must not raise. The token of a queued
task travels in its labels.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime, timedelta, timezone
from typing import Any

from taskiq import (
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    ScheduleSource,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.exceptions import NoResultError
from taskiq.kicker import AsyncKicker

from lualock.errors import LockError
from lualock.jobs.bound import SYSTEM, alone, bound_in
from lualock.jobs.in_thread import run_in_thread
from lualock.jobs.taskiq_dependencies import Dependencies
from lualock.jobs.terms import Delivery, Enqueued, Refused, RetryLater

LABEL = "lualock"

log = logging.getLogger("lualock.jobs")

_message: ContextVar[TaskiqMessage | None] = ContextVar("lualock_taskiq", default=None)


def locked(
    broker: AsyncBroker,
    task_name: str | None = None,
    *,
    schedule_source: ScheduleSource | None = None,
    **labels: Any,
) -> Callable[[Any], AsyncTaskiqDecoratedTask[Any, Any]]:
    """``broker.task(...)`` for a function decorated with ``locks.job``, or for a ``LockedJob``.

    :param schedule_source: where a task that is to be delivered again waits for that (a scheduler
        must run); without one it waits in its worker, where it counts as one that runs.
    """
    if not any(isinstance(middleware, _Messages) for middleware in broker.middlewares):
        broker.add_middlewares(_Messages())

    def declare(job: Any) -> AsyncTaskiqDecoratedTask[Any, Any]:
        perform = _locked(Dependencies(alone(job), job), broker, schedule_source)
        perform.__module__ = job.__module__
        perform.__name__ = job.__name__
        return broker.task(task_name, **labels)(perform)

    return declare


async def enqueue(task: Any, /, *args: Any, **kwargs: Any) -> Enqueued | Refused:
    """``task.kiq(...)`` unless another task is in its way; ``result`` is what that returns.

    ``task`` may be a kicker, with labels of its own: ``rebuild.kicker().with_labels(...)``.
    """
    kicker: AsyncKicker[Any, Any] = task.kicker() if hasattr(task, "kicker") else task
    found = kicker.broker.find_task(kicker.task_name)
    work = bound_in("taskiq", found.original_func if found else None)
    job_id = kicker.custom_task_id or kicker.broker.id_generator()
    kicker = kicker.with_task_id(job_id)

    def push(token: str) -> Any:
        return (kicker.with_labels(**{LABEL: token}) if token else kicker).kiq(*args, **kwargs)

    return await work.enqueue_async(push, args, kwargs, job_id=job_id)


def _locked(dependencies: Dependencies, broker: AsyncBroker, source: ScheduleSource | None) -> Any:
    """What a worker runs."""

    @functools.wraps(dependencies.body)
    async def perform(*args: Any, **kwargs: Any) -> Any:
        work = dependencies.without()
        message = _message.get()
        _message.set(None)  # it is of this run alone, and not of what that calls
        if message is not None:
            task = broker.find_task(message.task_name)
            if task is None or task.original_func is not perform:
                message = None  # another task calls this one
        delivery = None
        if message is not None:
            will_retry = functools.partial(_retry_s, broker, message)
            delivery = Delivery(message.task_id, message.labels.get(LABEL), will_retry)
        try:
            with dependencies.past(kwargs) as own:
                if work.asynchronous:
                    return await work.run(args, own, delivery)
                return await run_in_thread(work, args, own, delivery)
        except RetryLater as later:
            if message is None or later.job_id != message.task_id:  # of a job that it calls
                raise
            raise _Again(delay_s=later.delay_s, source=source) from None

    perform.__lualock__ = dependencies.without  # type: ignore[attr-defined]  # what bound() looks for
    setattr(perform, SYSTEM, "taskiq")
    return perform


class _Again(NoResultError):
    """A task did not run, and is to be delivered again."""

    __template__ = "to be delivered again in {delay_s} s"
    delay_s: float
    source: ScheduleSource | None


def _retry_s(broker: AsyncBroker, message: TaskiqMessage, error: BaseException) -> float | None:
    """In how many seconds at most taskiq's middleware has a task run again that raised this."""
    for middleware in broker.middlewares:
        if isinstance(middleware, SimpleRetryMiddleware | SmartRetryMiddleware):
            task = broker.find_task(message.task_name)
            kinds = task.labels.get("types_of_exceptions") if task is not None else None
            if kinds is None:
                kinds = getattr(
                    middleware, "types_of_exceptions", None
                )  # which SimpleRetry has late
            told = message.labels.get("retry_on_error", middleware.default_retry_label)
            done = int(message.labels.get("_retries", 0)) + 1
            most = int(message.labels.get("max_retries", middleware.default_retry_count))
            if isinstance(error, NoResultError) or str(told).lower() != "true" or done >= most:
                return None
            if kinds is not None and not isinstance(error, tuple(kinds)):
                return None
            if isinstance(middleware, SmartRetryMiddleware):
                return middleware.make_delay(message, done) + 1.0  # which is the most of its jitter
            return 0.0
    return None


class _Messages(TaskiqMiddleware):
    """Tells a task which message it works on, and has one that was too early delivered again."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        _message.set(message)
        return message

    async def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        """With its id and its labels. Not in the task, whose ``timeout`` would end the waiting;
        and before the message that it came with is acknowledged."""
        if not isinstance(exception, _Again):
            if _message.get() is not None:
                await self._never_began(message, exception)
            return
        kicker: AsyncKicker[Any, Any] = AsyncKicker(message.task_name, self.broker, message.labels)
        kicker = kicker.with_task_id(message.task_id)
        try:
            if exception.source is None:
                await asyncio.sleep(exception.delay_s)
                await kicker.kiq(*message.args, **message.kwargs)
            else:
                when = datetime.now(timezone.utc) + timedelta(seconds=exception.delay_s)
                await kicker.schedule_by_time(
                    exception.source, when, *message.args, **message.kwargs
                )
        except Exception:  # not where it is cancelled: then its message may come back
            await self._leave(message)
            raise

    async def _never_began(self, message: TaskiqMessage, error: BaseException) -> None:
        """What it depends on could not be made, so nobody else gives its place up."""
        _message.set(None)
        if _retry_s(self.broker, message, error) is None:
            await self._leave(message)

    async def _leave(self, message: TaskiqMessage) -> None:
        """Give up what is kept for a task that does not come back."""
        task = self.broker.find_task(message.task_name)
        function = None if task is None else task.original_func
        if getattr(function, SYSTEM, None) != "taskiq":
            return
        token = message.labels.get(LABEL)
        try:
            await bound_in("taskiq", function).cancel_async(
                message.args, message.kwargs, job_id=message.task_id, token=token
            )
        except LockError as problem:
            log.warning("the place of task %s ends by itself: %s", message.task_id, problem)

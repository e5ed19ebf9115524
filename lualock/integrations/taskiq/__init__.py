"""taskiq: run tasks under their locks in taskiq's workers. ``pip install 'lualock[taskiq]'``.

::

    @locked(broker)
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    async def rebuild(shop_id): ...

    await enqueue(rebuild, 7)

The function itself takes the lock, because the hook ``pre_execute`` must not raise. The token of a
queued task travels in its labels.
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
    InMemoryBroker,
    ScheduleSource,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.exceptions import NoResultError
from taskiq.kicker import AsyncKicker
from taskiq.receiver import Receiver

from lualock.errors import LockError
from lualock.integrations._adapters import SYSTEM, adapter_in, delivered_by, innermost_adapter
from lualock.integrations._in_thread import run_in_thread
from lualock.integrations.taskiq.dependencies import Dependencies
from lualock.jobs import Delivery, Enqueued, Refused, RetryLater

_LABEL = "lualock"

log = logging.getLogger("lualock.jobs")

_Delivered = tuple[AsyncBroker, TaskiqMessage]
_delivered: ContextVar[_Delivered | None] = ContextVar("lualock_taskiq", default=None)


def locked(
    broker: AsyncBroker,
    task_name: str | None = None,
    *,
    schedule_source: ScheduleSource | None = None,
    **labels: Any,
) -> Callable[[Any], AsyncTaskiqDecoratedTask[Any, Any]]:
    """Decorate as ``broker.task(...)`` does, a function with ``locks.job`` or a ``LockedJob``.

    :param schedule_source: where a task waits for its next delivery (a scheduler must run).
        Without a source it waits in its worker, and counts as a running task there.
    """
    _add_hook(broker)

    def declare(job: Any) -> AsyncTaskiqDecoratedTask[Any, Any]:
        perform = _locked(Dependencies(innermost_adapter(job), job), schedule_source)
        perform.__module__ = job.__module__
        perform.__name__ = job.__name__
        return broker.task(task_name, **labels)(perform)

    return declare


async def enqueue(task: Any, /, *args: Any, **kwargs: Any) -> Enqueued | Refused:
    """Call ``task.kiq(...)`` unless the task conflicts with another one; ``result`` is its result.

    ``task`` may be a kicker with labels of its own: ``rebuild.kicker().with_labels(...)``.
    """
    kicker: AsyncKicker[Any, Any] = task.kicker() if hasattr(task, "kicker") else task
    found = kicker.broker.find_task(kicker.task_name)
    adapter = adapter_in("taskiq", found.original_func if found else None)
    job_id = kicker.custom_task_id or kicker.broker.id_generator()
    kicker = kicker.with_task_id(job_id)

    def push(token: str) -> Any:
        return (kicker.with_labels(**{_LABEL: token}) if token else kicker).kiq(*args, **kwargs)

    return await adapter.enqueue_async(push, args, kwargs, job_id=job_id)


def _add_hook(broker: AsyncBroker) -> None:
    """Have a broker tell tasks which message they process."""
    if not any(isinstance(middleware, _Messages) for middleware in broker.middlewares):
        broker.add_middlewares(_Messages())


def _delivered_without_hook() -> _Delivered | None:
    """Return the broker and the message of a task that a broker without the hook delivers.

    The task was declared to another broker, as a shared task. This one has the hook from now on.
    """
    found = delivered_by(Receiver.run_task, 2)
    if found is None:
        return None
    _add_hook(found[0].broker)
    return found[0].broker, found[1]


def _locked(dependencies: Dependencies, source: ScheduleSource | None) -> Any:
    """Return the function that a worker runs."""

    @functools.wraps(dependencies.body)
    async def perform(*args: Any, **kwargs: Any) -> Any:
        adapter = dependencies.adapter()
        delivered, delivery = _delivered.get() or _delivered_without_hook(), None
        _delivered.set(None)  # it belongs to this run, not to tasks that it calls
        # Otherwise another task calls this one, or the caller is not taskiq.
        if delivered is not None and _function_of(*delivered) is perform:
            broker, message = delivered
            will_retry = functools.partial(_retry_s, broker, message)
            delivery = Delivery(message.task_id, message.labels.get(_LABEL), will_retry)
        try:
            with dependencies.set_aside(kwargs) as arguments:
                if adapter.asynchronous:
                    return await adapter.run(args, arguments, delivery)
                return await run_in_thread(adapter, args, arguments, delivery)
        except RetryLater as later:
            if not later.is_of(delivery):
                raise
            raise _DeliverAgain(delay_s=later.delay_s, source=source) from None

    perform.__lualock__ = dependencies.adapter  # type: ignore[attr-defined]  # for jobs.adapter()
    setattr(perform, SYSTEM, "taskiq")
    return perform


def _function_of(broker: AsyncBroker, message: TaskiqMessage) -> Any:
    task = broker.find_task(message.task_name)
    return None if task is None else task.original_func


class _DeliverAgain(NoResultError):
    """A task did not run, and must be delivered again."""

    __template__ = "the task is delivered again in {delay_s} s"
    delay_s: float
    source: ScheduleSource | None


def _retry_s(broker: AsyncBroker, message: TaskiqMessage, error: BaseException) -> float | None:
    """Return in how many seconds at most taskiq retries a task that raised this, or ``None``."""
    for middleware in broker.middlewares:
        if isinstance(middleware, SimpleRetryMiddleware | SmartRetryMiddleware):
            task = broker.find_task(message.task_name)
            kinds = task.labels.get("types_of_exceptions") if task is not None else None
            if kinds is None:
                # SimpleRetryMiddleware has it only in later versions.
                kinds = getattr(middleware, "types_of_exceptions", None)
            enabled = message.labels.get("retry_on_error", middleware.default_retry_label)
            tries = int(message.labels.get("_retries", 0)) + 1
            max_tries = int(message.labels.get("max_retries", middleware.default_retry_count))
            if isinstance(error, NoResultError) or str(enabled).lower() != "true":
                return None
            if tries >= max_tries:
                return None
            if kinds is not None and not isinstance(error, tuple(kinds)):
                return None
            if isinstance(middleware, SmartRetryMiddleware):
                return middleware.make_delay(message, tries) + 1.0  # its jitter is at most 1 s
            return 0.0
    return None


class _Messages(TaskiqMiddleware):
    """Tell a task which message it processes, and deliver one that did not run again."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        _delivered.set((self.broker, message))
        return message

    async def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        """Deliver a task that did not run again, with its id and its labels.

        This does not happen in the task, whose ``timeout`` limits the wait. It happens before the
        message of this delivery is acknowledged.
        """
        if not isinstance(exception, _DeliverAgain):
            if _delivered.get() is not None:
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
        except BaseException as error:
            # If this is cancelled, its message may come back, unless that was in memory only.
            if isinstance(error, Exception) or isinstance(self.broker, InMemoryBroker):
                await self._cancel(message)
            raise

    async def _never_began(self, message: TaskiqMessage, error: BaseException) -> None:
        """Release the reservation of a task whose dependencies failed, unless it is retried."""
        _delivered.set(None)
        if _retry_s(self.broker, message, error) is None:
            await self._cancel(message)

    async def _cancel(self, message: TaskiqMessage) -> None:
        """Release what is kept for a task that does not come back."""
        function = _function_of(self.broker, message)
        if getattr(function, SYSTEM, None) != "taskiq":
            return
        token = message.labels.get(_LABEL)
        try:
            await adapter_in("taskiq", function).cancel_async(
                message.args, message.kwargs, job_id=message.task_id, token=token
            )
        except LockError as problem:
            log.warning(
                "the reservation of task %s expires on its own: %s", message.task_id, problem
            )

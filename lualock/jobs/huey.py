"""Huey: tasks that have their lock in its consumer. ``pip install 'lualock[huey]'``.

::

    huey = RedisHuey()
    huey.task_wrapper_class = LockedTask

    @huey.task()
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    def rebuild(shop_id): ...

    rebuild.enqueue(7)  # or rebuild(7)

The lock is taken by the task's function: Huey swallows what its signals and hooks raise. A task has
no room for a token, so its place has one that is made of its id.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from datetime import datetime, timezone
from typing import Any

from huey import signals
from huey.api import Result, Task, TaskWrapper
from huey.exceptions import RetryTask

from lualock.errors import InvalidArgument, LockError
from lualock.jobs.bound import Bound, bound
from lualock.jobs.terms import Delivery, Enqueued, Refused, RetryLater, token_of

log = logging.getLogger("lualock.jobs")


class LockedTask(TaskWrapper):  # type: ignore[misc]  # Huey has no types
    """What ``@huey.task()`` makes of a function that was decorated with ``locks.job``; any other
    is as without this class."""

    work: Bound | None = None

    def __init__(
        self, huey: Any, func: Any, context: bool = False, name: str | None = None, **options: Any
    ) -> None:
        if hasattr(func, "__lualock__"):
            self.work = bound(func)
            if context:
                raise InvalidArgument(
                    f"task {self.work.name}: with context=True the task would be one of the "
                    "arguments that name its lock; leave it out"
                )
            run = _locked(self.work)
            run.__name__, run.__module__ = func.__name__, func.__module__  # also of a class
            func, context = run, True
        super().__init__(huey, func, context, name, **options)
        if self.work is not None:
            huey.signal(signals.SIGNAL_REVOKED, signals.SIGNAL_EXPIRED)(self._gone)

    def enqueue(self, *args: Any, **kwargs: Any) -> Enqueued | Refused:
        """Call the task, and say what became of it; ``result`` is what Huey returns."""
        task = self.s(*args, **kwargs)
        if self.work is None:
            return Enqueued(task.id, "", self.huey.enqueue(task))
        return self.work.enqueue(
            lambda token: self.huey.enqueue(task),
            task.args,
            task.kwargs,
            job_id=task.id,
            token=token_of(task.id),
            delay=_delay_s(task.eta, self.huey.utc),
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As ever; where ``unique=`` refuses the task, the result is of the one that is there."""
        entry = self.enqueue(*args, **kwargs)
        if isinstance(entry, Enqueued):
            return entry.result
        return Result(self.huey, Task(id=entry.job_id)) if self.huey.results else None

    def schedule(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """As ever, in the same terms as a call."""
        if "eta" not in options and "delay" not in options:
            options["eta" if isinstance(args, datetime) else "delay"] = args
            args = None
        return self(*(args or ()), **(kwargs or {}), **options)

    def _gone(self, signal: str, task: Any, *_: Any) -> None:
        """A task was revoked, or came too late: it will not begin."""
        if self.work is not None and isinstance(task, self.task_class):
            try:
                self.work.cancel(task.args, task.kwargs, token=token_of(task.id))
            except LockError as error:
                log.warning("the place of task %s ends by itself: %s", task.id, error)


def _locked(work: Bound) -> Any:
    """What a consumer runs."""

    @functools.wraps(work.body)
    def run(*args: Any, task: Any = None, **kwargs: Any) -> Any:
        delivery = None
        if task is not None:
            delivery = Delivery(task.id, will_retry=functools.partial(_retry_s, task))
        try:
            result = work.run(args, kwargs, delivery)
            return asyncio.run(result) if work.asynchronous else result
        except RetryLater as later:
            if task is None:
                raise
            raise RetryTask(str(later), delay=later.delay_s) from None

    return run


def _retry_s(task: Any, error: BaseException) -> float | None:
    """In how many seconds Huey runs a task again that raised this."""
    if isinstance(error, RetryTask) and (error.eta or error.delay is not None):
        return _delay_s(error.eta) if error.eta else float(error.delay)
    if task.retries or isinstance(error, RetryTask):
        return float(task.retry_delay)
    return None


def _delay_s(eta: datetime | None, utc: bool = True) -> float:
    """For how long a task is not to begin. Huey's times are naive, and local with ``utc=False``."""
    if eta is None:
        return 0.0
    now = datetime.now(eta.tzinfo or (timezone.utc if utc else None))
    return max(0.0, (eta - now.replace(tzinfo=eta.tzinfo)).total_seconds())

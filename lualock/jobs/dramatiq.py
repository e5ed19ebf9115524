"""Dramatiq: actors that have their lock in its workers. ``pip install 'lualock[dramatiq]'``.

::

    @dramatiq.actor(actor_class=LockedActor)
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    def rebuild(shop_id): ...

    rebuild.enqueue(7)  # or rebuild.send(7)

The lock is taken by the actor itself: what middleware raises before a message is processed would
let it run *without* its lock. The token of a queued message travels in its options.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import dramatiq
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.errors import Retry
from dramatiq.message import generate_unique_id
from dramatiq.middleware import Interrupt, Middleware, Retries, SkipMessage

from lualock.errors import LockError
from lualock.jobs.bound import alone
from lualock.jobs.terms import Delivery, Enqueued, Refused, RetryLater, token_of

OPTION = "lualock"

log = logging.getLogger("lualock.jobs")

_message: ContextVar[Any] = ContextVar("lualock_message", default=None)
_again: ContextVar[Any] = ContextVar("lualock_again", default=None)


class LockedActor(dramatiq.Actor[Any, Any]):
    """An actor whose function was decorated with ``locks.job``."""

    def __init__(self, fn: Any, *, broker: dramatiq.Broker, **options: Any) -> None:
        self.work = alone(fn)
        if not any(isinstance(middleware, _Messages) for middleware in broker.middleware):
            broker.add_middleware(_Messages())

        @functools.wraps(self.work.body)
        def perform(*args: Any, **kwargs: Any) -> Any:
            return self._perform(args, kwargs)

        super().__init__(perform, broker=broker, **options)

    def enqueue(self, *args: Any, **kwargs: Any) -> Enqueued | Refused:
        """:meth:`send` that says what became of it; ``result`` is the message."""
        return self.enqueue_with_options(args=args, kwargs=kwargs)

    def enqueue_with_options(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | int | None = None,
        **options: Any,
    ) -> Enqueued | Refused:
        """:meth:`send_with_options` that says what became of it."""
        if isinstance(delay, timedelta):
            delay = int(delay.total_seconds() * 1000)
        message = self.message_with_options(args=args, kwargs=kwargs, **options)

        def push(token: str) -> Any:
            told = message.copy(options={OPTION: token}) if token else message
            return self.broker.enqueue(told, delay=delay)

        job_id, delay_s = message.message_id, max(0, delay or 0) / 1000
        return self.work.enqueue(push, args, kwargs, job_id=job_id, delay=delay_s)

    def send_with_options(self, **told: Any) -> Any:
        """As ever; where ``unique=`` refuses the message, that one has the id of the message which
        is there already, and was not sent."""
        entry = self.enqueue_with_options(**told)
        if isinstance(entry, Enqueued):
            return entry.result
        message = self.message_with_options(args=told.get("args", ()), kwargs=told.get("kwargs"))
        return message.copy(message_id=entry.job_id or generate_unique_id())

    def _perform(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        message = _message.get()
        _message.set(None)  # it is of this run alone, and not of what that calls
        delivery = None
        if message is not None and message.actor_name == self.actor_name:
            will_retry = functools.partial(self._retry_s, message)
            delivery = Delivery(message.message_id, message.options.get(OPTION), will_retry)
        try:
            result = self.work.run(args, kwargs, delivery)
            return _wait_for(result) if self.work.asynchronous else result
        except RetryLater as later:
            if delivery is None or later.job_id != delivery.job_id:  # of a job that it calls
                raise
            delay_ms = int(later.delay_s * 1000)
        except Interrupt as interruption:
            # A coroutine knows only that it is cancelled, which Dramatiq might try again.
            if delivery is not None and self._retry_s(message, interruption) is None:
                self._leave(args, kwargs, delivery)
            raise
        # Sent again as it is. An error would be judged by ``throws`` and ``retry_when``, which know
        # the actor's own, and be counted; and a message that is skipped would have a result.
        try:
            self.broker.enqueue(message.copy(), delay=delay_ms)
        except BaseException:
            self._leave(args, kwargs, delivery)
            raise
        message.options["store_results"] = False
        _again.set(message.message_id)
        raise SkipMessage

    def _leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], delivery: Delivery) -> None:
        """Give up what is kept for a message that does not come back."""
        with suppress(LockError):  # it ends by itself then
            self.work.cancel(args, kwargs, job_id=delivery.job_id, token=delivery.token)

    def _retry_s(self, message: Any, error: BaseException) -> float | None:
        """In how many seconds at most the middleware has a message run again that raised this."""
        for middleware in self.broker.middleware:
            if isinstance(middleware, Retries):
                return _by(middleware, self.options | message.options, error)
        return None


def _wait_for(job: Any) -> Any:
    """What a coroutine returns. With the middleware ``AsyncIO`` all of a process share a loop."""
    thread = get_event_loop_thread()
    if thread is threading.current_thread():  # Dramatiq would wait, and all its coroutines with it
        job.close()
        raise RuntimeError(
            "a coroutine cannot call an actor that is one: both have the same event loop, which "
            "would wait for itself. Send it a message, or await what locks.job decorated"
        )
    return asyncio.run(job) if thread is None else thread.run_coroutine(job)


def _by(middleware: Retries, told: dict[str, Any], error: BaseException) -> float | None:
    done = told.get("retries", 0)
    if isinstance(error, told.get("throws") or ()):
        return None
    retry_when = told.get("retry_when", middleware.retry_when)
    most = told.get("max_retries", middleware.max_retries)
    if retry_when is not None:
        if not retry_when(done, error):
            return None
    elif most is not None and done >= most:
        return None
    if isinstance(error, Retry) and error.delay is not None:
        return float(error.delay) / 1000
    longest: float = told.get("max_backoff", middleware.max_backoff)
    first: float = told.get("min_backoff", middleware.min_backoff)
    return float(min(first * 2 ** min(done + 1, 32), longest)) / 1000


class _Messages(Middleware):
    """Tells an actor which message it works on, and frees the place of one that is skipped."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        _message.set(message)

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        _message.set(None)

    def after_skip_message(self, broker: Any, message: Any) -> None:
        _message.set(None)
        if _again.get() == message.message_id:  # the copy has its place
            _again.set(None)
            return
        actor = broker.get_actor(message.actor_name)
        token = message.options.get(OPTION) or token_of(message.message_id)
        if isinstance(actor, LockedActor):
            try:
                actor.work.cancel(message.args, message.kwargs, token=token)
            except LockError as error:
                log.warning("the place of message %s ends by itself: %s", message.message_id, error)

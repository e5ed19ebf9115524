"""Dramatiq: run actors under their locks in its workers. ``pip install 'lualock[dramatiq]'``.

::

    @dramatiq.actor(actor_class=LockedActor)
    @locks.job(unique="queued", policy=jobs.Retry(delay=10))
    def rebuild(shop_id): ...

    rebuild.enqueue(7)  # or rebuild.send(7)

The actor itself takes the lock: an error of middleware before a message is processed lets the actor
run *without* its lock. The token of a queued message travels in its options.
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
from dramatiq.worker import _WorkerThread

from lualock.errors import LockError
from lualock.integrations._adapters import delivered_by, forget_unknown, innermost_adapter
from lualock.jobs import Delivery, Enqueued, Refused, RetryLater, token_of

_OPTION = "lualock"
_adding = threading.Lock()

log = logging.getLogger("lualock.jobs")

# The broker and the message that the next call of an actor is for.
_delivered: ContextVar[Any] = ContextVar("lualock_delivered", default=None)
_resent_id: ContextVar[Any] = ContextVar("lualock_resent_id", default=None)


class LockedActor(dramatiq.Actor[Any, Any]):
    """An actor whose function was decorated with ``locks.job``."""

    def __init__(self, fn: Any, *, broker: dramatiq.Broker, **options: Any) -> None:
        self.__lualock__ = self.work = innermost_adapter(fn)  # for jobs.adapter()

        @functools.wraps(self.work.body)
        def perform(*args: Any, **kwargs: Any) -> Any:
            return self._perform(args, kwargs)

        super().__init__(perform, broker=broker, **options)

    @property
    def broker(self) -> Any:
        """The broker to which messages are sent."""
        return self._broker

    @broker.setter
    def broker(self, broker: Any) -> None:
        _add_hook(broker)
        self._broker = broker

    def enqueue(self, *args: Any, **kwargs: Any) -> Enqueued | Refused:
        """Send a message unless it conflicts with another one; ``result`` is the message."""
        return self.enqueue_with_options(args=args, kwargs=kwargs)

    def enqueue_with_options(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | int | None = None,
        **options: Any,
    ) -> Enqueued | Refused:
        """Do the same as :meth:`enqueue`, with the options of :meth:`send_with_options`."""
        if isinstance(delay, timedelta):
            delay = int(delay.total_seconds() * 1000)
        message = self.message_with_options(args=args, kwargs=kwargs, **options)

        def push(token: str) -> Any:
            pushed = message.copy(options={_OPTION: token}) if token else message
            return self.broker.enqueue(pushed, delay=delay)

        job_id, delay_s = message.message_id, max(0, delay or 0) / 1000
        return self.work.enqueue(push, args, kwargs, job_id=job_id, delay=delay_s)

    def send_with_options(self, **options: Any) -> Any:
        """Send a message as Dramatiq does, unless ``unique=`` refuses it.

        A refused message is returned with the id of the conflicting message, and was not sent.
        """
        entry = self.enqueue_with_options(**options)
        if isinstance(entry, Enqueued):
            return entry.result
        args, kwargs = options.get("args", ()), options.get("kwargs")
        message = self.message_with_options(args=args, kwargs=kwargs)
        return message.copy(message_id=entry.job_id or generate_unique_id())

    def _perform(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        broker, message = _delivered.get() or _delivered_without_hook()
        _delivered.set(None)  # it belongs to this run, not to actors that it calls
        delivery = None
        if message is not None and message.actor_name == self.actor_name:
            will_retry = functools.partial(self._retry_s, broker, message)
            delivery = Delivery(message.message_id, message.options.get(_OPTION), will_retry)
        try:
            result = self.work.run(args, kwargs, delivery)
            return _run_coroutine(result) if self.work.asynchronous else result
        except RetryLater as later:
            if delivery is None or not later.is_of(delivery):
                raise
            delay_ms = int(later.delay_s * 1000)
        except Interrupt as interruption:
            # A coroutine saw only a cancellation, and Dramatiq may retry that.
            if delivery is not None and self._retry_s(broker, message, interruption) is None:
                self._cancel(args, kwargs, delivery)
            raise
        # Sent again as it is. `throws` and `retry_when` judge an error, and Dramatiq counts it.
        # A skipped message has a result unless `store_results` is off.
        try:
            broker.enqueue(message.copy(), delay=delay_ms)
        except BaseException:
            self._cancel(args, kwargs, delivery)
            raise
        message.options["store_results"] = False
        _resent_id.set(message.message_id)
        raise SkipMessage

    def _cancel(self, args: tuple[Any, ...], kwargs: dict[str, Any], delivery: Delivery) -> None:
        """Release what is kept for a message that does not come back."""
        with suppress(LockError):  # it expires on its own then
            self.work.cancel(args, kwargs, job_id=delivery.job_id, token=delivery.token)

    def _retry_s(self, broker: Any, message: Any, error: BaseException) -> float | None:
        """Return in how many seconds at most Dramatiq retries a message, or ``None``."""
        for middleware in broker.middleware:
            if isinstance(middleware, Retries):
                return _retry_delay_s(middleware, self.options | message.options, error)
        return None


def _add_hook(broker: Any) -> None:
    """Have a broker tell actors which message they process."""
    with _adding:
        if not any(isinstance(middleware, _Messages) for middleware in broker.middleware):
            broker.add_middleware(_Messages())


def _delivered_without_hook() -> tuple[Any, Any]:
    """Return the broker and the message of an actor that a broker without the hook delivers.

    The actor was declared to another broker. This one has the hook from now on. Both are ``None``
    if the caller is not a worker.
    """
    # The calls between: Actor.__call__, the actor's function, _perform.
    found = delivered_by(_WorkerThread.process_message, 4)
    if found is None:
        return None, None
    _add_hook(found[0].broker)
    return found[0].broker, found[1]


def _run_coroutine(coroutine: Any) -> Any:
    """Return the result of a coroutine.

    With the middleware ``AsyncIO`` all actors of a process share an event loop.
    """
    thread = get_event_loop_thread()
    if thread is threading.current_thread():  # waiting here would block the loop
        coroutine.close()
        raise RuntimeError(
            "could not call the actor: its coroutine and the caller have the same event loop, "
            "which would wait for itself. Send a message, or await what locks.job decorated"
        )
    return asyncio.run(coroutine) if thread is None else thread.run_coroutine(coroutine)


def _retry_delay_s(
    middleware: Retries, options: dict[str, Any], error: BaseException
) -> float | None:
    """Decide as the middleware ``Retries`` does."""
    retries = options.get("retries", 0)
    if isinstance(error, options.get("throws") or ()):
        return None
    retry_when = options.get("retry_when", middleware.retry_when)
    max_retries = options.get("max_retries", middleware.max_retries)
    if retry_when is not None:
        if not retry_when(retries, error):
            return None
    elif max_retries is not None and retries >= max_retries:
        return None
    if isinstance(error, Retry) and error.delay is not None:
        return float(error.delay) / 1000
    max_backoff: float = options.get("max_backoff", middleware.max_backoff)
    min_backoff: float = options.get("min_backoff", middleware.min_backoff)
    return float(min(min_backoff * 2 ** min(retries + 1, 32), max_backoff)) / 1000


class _Messages(Middleware):
    """Tell an actor which message it processes, and release the reservation of a skipped one."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        _delivered.set((broker, message))

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        _delivered.set(None)

    def after_nack(self, broker: Any, message: Any) -> None:
        if message.actor_name not in broker.actors:  # it was renamed
            known = (one.work for one in broker.actors.values() if isinstance(one, LockedActor))
            forget_unknown(known, message.message_id, message.options.get(_OPTION))

    def after_skip_message(self, broker: Any, message: Any) -> None:
        _delivered.set(None)
        if _resent_id.get() == message.message_id:  # the copy has the reservation
            _resent_id.set(None)
            return
        actor = broker.get_actor(message.actor_name)
        token = message.options.get(_OPTION) or token_of(message.message_id)
        if isinstance(actor, LockedActor):
            try:
                actor.work.cancel(message.args, message.kwargs, token=token)
            except LockError as error:
                log.warning(
                    "the reservation of message %s expires on its own: %s",
                    message.message_id,
                    error,
                )

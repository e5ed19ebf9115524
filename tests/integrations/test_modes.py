"""Modes in which a job system runs a job where it is sent from, or keeps its queue in memory.

Nothing there delivers a job again later, so nothing is kept for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import celery
import dramatiq
import huey
import pytest
import redis
import rq
import taskiq
from celery.exceptions import Reject, Retry
from dramatiq.brokers.stub import StubBroker
from huey.exceptions import CancelExecution, RateLimitExceeded, RetryTask

import lualock
from lualock import jobs
from lualock.integrations import celery as celery_integration
from lualock.integrations import dramatiq as dramatiq_integration
from lualock.integrations import huey as huey_integration
from lualock.integrations import rq as rq_integration
from lualock.integrations import taskiq as taskiq_integration
from tests.support.servers import Server

Submit = Callable[[Any, Server], object]


class Trouble(Exception):
    """The exception that the jobs here raise."""


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def in_huey(
    how: Callable[[Any], object] = lambda task: task(7),
    make: Callable[[], Any] = lambda: huey.MemoryHuey(immediate=True),
    **options: Any,
) -> Submit:
    """Submit the job in Huey's immediate mode, or to another Huey."""

    def submit(job: Any, server: Server) -> object:
        here = make()
        here.task_wrapper_class = huey_integration.LockedTask
        return how(here.task(**options)(job))

    return submit


def in_celery(
    how: Callable[[Any], Any] = lambda task: task.delay(7), propagates: bool = False, **options: Any
) -> Submit:
    """Submit the job to a Celery app whose tasks are eager."""

    def submit(job: Any, server: Server) -> None:
        app = celery.Celery("modes", task_cls=celery_integration.LockedTask, set_as_current=False)
        app.conf.update(task_always_eager=True, task_eager_propagates=propagates)
        try:
            how(app.task(shared=False, **options)(job))
        except Exception:
            if not propagates:
                raise
        finally:
            app.close()

    return submit


def in_rq(**options: Any) -> Submit:
    """Submit the job to an RQ queue with ``is_async=False``."""

    def submit(job: Any, server: Server) -> None:
        declared = rq_integration.locked(job)
        declared.__qualname__ = "found_by_rq"
        globals()[declared.__qualname__] = declared
        with redis.Redis(unix_socket_path=server.socket) as connection:
            queue = rq.Queue(connection=connection, is_async=False)
            rq_integration.enqueue(queue, declared, 7, **options)

    return submit


def in_taskiq(job: Any, server: Server) -> None:
    """Submit the job to taskiq's broker in memory, in a loop that ends while the job waits."""

    async def main() -> None:
        broker = taskiq.InMemoryBroker()
        failed = asyncio.Event()

        class Watch(taskiq.TaskiqMiddleware):
            """Sees an error just before the integration does, which then waits to send the job."""

            def on_error(self, *_: Any) -> None:
                failed.set()

        task = taskiq_integration.locked(broker)(job)
        broker.add_middlewares(Watch())  # the last one is the first to see an error
        await taskiq_integration.enqueue(task, 7)
        await failed.wait()
        await asyncio.sleep(0)

    asyncio.run(main())


def in_dramatiq(with_retries: bool, **options: Any) -> Submit:
    """Submit the job to Dramatiq's broker in memory, and work it off."""

    def submit(job: Any, server: Server) -> None:
        broker = StubBroker(None if with_retries else [], fail_fast_default=False)
        options.update(actor_class=dramatiq_integration.LockedActor, broker=broker)
        actor = dramatiq.actor(**options)(job)
        actor.send(7)
        worker = dramatiq.Worker(broker, worker_timeout=10)
        worker.start()
        broker.join(actor.queue_name)
        worker.stop()

    return submit


def in_a_minute() -> datetime:
    return datetime.now() + timedelta(minutes=1)


HELD: dict[str, Submit] = {
    "huey": in_huey(),
    "huey, with retries": in_huey(retries=2),
    "huey, with retries later": in_huey(retries=2, retry_delay=60),
    "huey, live storage": in_huey(
        make=lambda: huey.MemoryHuey(immediate=True, immediate_use_memory=False)
    ),
    "celery": in_celery(),
    "celery, propagating": in_celery(propagates=True),
    "celery, applied": in_celery(lambda task: task.apply((7,))),
    "rq": in_rq(),
    "rq, with retries": in_rq(retry=rq.Retry(max=3, interval=60)),
    "taskiq": in_taskiq,
}
"""How a job is submitted whose lock is held, and whose policy is to come back later."""

RETRIED: dict[str, tuple[Submit, Callable[[], BaseException]]] = {
    "huey": (in_huey(retries=2, retry_delay=60), Trouble),
    "huey, at once": (in_huey(retries=2), Trouble),
    "huey, asked for": (in_huey(), lambda: RetryTask(delay=60)),
    "huey, asked for at once": (in_huey(), lambda: RetryTask(delay=0)),
    "huey, asked for at a time": (in_huey(), lambda: RetryTask(eta=in_a_minute())),
    "huey, asked for with the task's delay": (in_huey(retry_delay=60), RetryTask),
    "huey, cancelled": (in_huey(retry_delay=60), lambda: CancelExecution(retry=True)),
    "huey, over its rate": (in_huey(), lambda: RateLimitExceeded("x", 60)),
    "celery": (in_celery(autoretry_for=(Trouble,), max_retries=2), Trouble),
    "celery, propagating": (in_celery(propagates=True, autoretry_for=(Trouble,)), Trouble),
    "celery, raised by hand": (in_celery(), lambda: Retry(when=60)),
    "celery, put back": (in_celery(acks_late=True), lambda: Reject(requeue=True)),
    "rq": (in_rq(retry=rq.Retry(max=3, interval=60)), Trouble),
    "dramatiq, without its middleware": (in_dramatiq(False), Trouble),
    "dramatiq, without retries": (in_dramatiq(True, max_retries=0), Trouble),
}
"""How a job is submitted that raises this, which its system answers with a retry in a minute."""

NEVER: dict[str, Submit] = {
    "huey, scheduled": in_huey(lambda task: task.schedule((7,), delay=60)),
    "huey, scheduled at a time": in_huey(lambda task: task.schedule((7,), eta=in_a_minute())),
    "huey, nowhere": in_huey(make=huey.BlackHoleHuey),
}
"""How a job is submitted that no worker ever comes to."""


def declare(locks: lualock.Locks, keep: bool, error: Callable[[], BaseException] | None) -> Any:
    def body(shop_id: int) -> None:
        _raise(None if error is None else error())

    options: Any = {"keep_lock_on_retry": keep, "policy": jobs.Retry(60)}
    return locks.job(key="x", unique="queued", **options)(body)


def nothing_is_left(locks: lualock.Locks, job: Any) -> bool:
    """Return whether neither the lock nor the reservation of the job is held."""
    return not (locks.lock("x").locked() or jobs.adapter(job).reservation([7]).locked())


@pytest.mark.parametrize("mode", HELD)
@pytest.mark.parametrize("keep", [False, True])
def test_nothing_is_kept_for_a_later_delivery(
    locks: lualock.Locks, one_server: Server, mode: str, keep: bool
) -> None:
    """A job whose lock is held fails where nothing delivers it again, and leaves nothing."""
    job = declare(locks, keep, None)
    with locks.lock("x"):
        HELD[mode](job, one_server)
    assert nothing_is_left(locks, job)


@pytest.mark.parametrize("mode", RETRIED)
@pytest.mark.parametrize("keep", [False, True])
def test_nothing_is_kept_for_a_retry(
    locks: lualock.Locks, one_server: Server, mode: str, keep: bool
) -> None:
    """A job that failed leaves nothing where its system's retry never comes."""
    submit, error = RETRIED[mode]
    job = declare(locks, keep, error)
    submit(job, one_server)
    assert nothing_is_left(locks, job)


@pytest.mark.parametrize("mode", NEVER)
def test_nothing_is_kept_for_what_is_never_delivered(
    locks: lualock.Locks, one_server: Server, mode: str
) -> None:
    """A job that no worker comes to has no reservation."""
    job = declare(locks, False, None)
    NEVER[mode](job, one_server)
    assert nothing_is_left(locks, job)

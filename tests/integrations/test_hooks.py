"""Jobs that are delivered elsewhere than where they were declared.

A hook of an integration is set where a job is declared: on its broker, or in this very thread.
A job that another broker delivers, or that runs inside of another one, has its delivery too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import celery
import dramatiq
import huey
import pytest
import redis
import rq
import taskiq
from dramatiq.brokers.stub import StubBroker
from taskiq.brokers.shared_broker import AsyncSharedBroker

import lualock
from lualock import jobs
from lualock.integrations import celery as celery_integration
from lualock.integrations import dramatiq as dramatiq_integration
from lualock.integrations import huey as huey_integration
from lualock.integrations import rq as rq_integration
from lualock.integrations import taskiq as taskiq_integration
from lualock.jobs.verbs import RESERVATION
from tests.support.servers import Server


class Trouble(Exception):
    """The exception that the jobs here raise."""


def rebuild(shop_id: int) -> None: ...


def free(locks: lualock.Locks, job: Any, key: str = "x") -> bool:
    """Return whether neither the lock nor the reservation of the job is held."""
    reservation: Any = locks.lock(key).derived(RESERVATION)  # the job itself may be a coroutine
    assert reservation.key == jobs.adapter(job).reservation([7]).key
    return not (locks.lock(key).locked() or reservation.locked())


# taskiq


def shared_before(broker: Any, declare: Callable[[Any], Any]) -> Any:
    """Name the default broker, then declare a shared task."""
    shared = AsyncSharedBroker()
    shared.default_broker(broker)
    return declare(shared)


def shared_after(broker: Any, declare: Callable[[Any], Any]) -> Any:
    """Declare a shared task, then name the default broker."""
    shared = AsyncSharedBroker()
    task = declare(shared)
    shared.default_broker(broker)
    return task


def with_broker(broker: Any, declare: Callable[[Any], Any]) -> Any:
    """Send a shared task to a broker that is named when it is sent."""
    shared = AsyncSharedBroker()
    return declare(shared).kicker().with_broker(broker)


def registered_again(broker: Any, declare: Callable[[Any], Any]) -> Any:
    """Register the function of a broker's task with another broker."""
    task = declare(taskiq.InMemoryBroker())
    return broker.register_task(task.original_func, "registered again")


ELSEWHERE = [shared_before, shared_after, with_broker, registered_again]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
async def test_taskiq_delivers_by_another_broker(locks: lualock.Locks, elsewhere: Any) -> None:
    """A task ends its reservation, and comes back if its lock is held, whichever broker has it."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    ran: list[int] = []
    busy: Any = None

    async def body(shop_id: int) -> None:
        ran.append(shop_id)

    def later(contention: jobs.Contention) -> jobs.Retry:
        busy.release()
        return jobs.Retry(0)

    job: Any = locks.job(key="x", unique="queued", policy=later)(body)
    task = elsewhere(
        broker, lambda where: taskiq_integration.locked(where, elsewhere.__name__)(job)
    )
    await taskiq_integration.enqueue(task, 7)
    assert free(locks, job)
    busy = locks.lock("x").acquire()
    await taskiq_integration.enqueue(task, 7)
    assert ran == [7, 7]
    assert free(locks, job)


async def test_taskiq_retries_by_another_broker(locks: lualock.Locks) -> None:
    """The retries of the broker that delivers a task count, and keep its lock."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    broker.add_middlewares(taskiq.SimpleRetryMiddleware(default_retry_label=True))
    kept: list[bool] = []

    class Watch(taskiq.TaskiqMiddleware):
        def on_error(self, *_: Any) -> None:
            kept.append(locks.lock("x").locked())

    broker.add_middlewares(Watch())

    async def body(shop_id: int) -> None:
        raise Trouble

    job: Any = locks.job(key="x", unique="queued", keep_lock_on_retry=True)(body)
    task = shared_after(broker, lambda shared: taskiq_integration.locked(shared, "kept")(job))
    await taskiq_integration.enqueue(task, 7)
    assert kept == [True, True, False]
    assert free(locks, job)


# Dramatiq


def moved(actor: Any, broker: Any) -> None:
    """Move an actor to another broker, and enqueue it there."""
    actor.broker = broker
    broker.declare_actor(actor)
    assert actor.enqueue(7)


def only_declared(actor: Any, broker: Any) -> None:
    """Declare an actor to another broker too, which then has the message of the first one."""
    broker.declare_actor(actor)
    assert actor.enqueue(7)
    (message,) = actor.broker.queues[actor.queue_name].queue
    broker.queues[actor.queue_name].put(message)


@pytest.mark.parametrize("move", [moved, only_declared])
@pytest.mark.parametrize("held", [False, True])
def test_dramatiq_delivers_by_another_broker(locks: lualock.Locks, move: Any, held: bool) -> None:
    """A message ends its reservation, and comes back if its lock is held, whichever broker has
    it."""
    first, second = StubBroker(), StubBroker()
    ran: list[int] = []
    busy: list[Any] = []

    def later(contention: jobs.Contention) -> jobs.Retry:
        busy.pop().release()
        return jobs.Retry(0)

    job: Any = locks.job(key="x", unique="queued", policy=later)(ran.append)
    actor = dramatiq.actor(actor_class=dramatiq_integration.LockedActor, broker=first)(job)
    if held:
        busy.append(locks.lock("x").acquire())
    move(actor, second)
    worker = dramatiq.Worker(second, worker_timeout=10)
    worker.start()
    second.join(actor.queue_name)
    worker.stop()
    assert ran == [7]
    assert free(locks, job)


def test_dramatiq_calls_an_actor_of_another_broker(locks: lualock.Locks) -> None:
    """An actor that another one calls has no delivery, also if neither broker has the hook."""
    broker, errors = StubBroker(), []
    inner: Any = dramatiq.actor(
        actor_class=dramatiq_integration.LockedActor, broker=StubBroker(), actor_name="inner"
    )(locks.job(key="x", policy=jobs.Retry(60))(rebuild))

    def outer() -> None:
        try:
            inner(7)
        except jobs.RetryLater as later:
            errors.append(later)

    actor = dramatiq.actor(broker=broker)(outer)
    actor.send()
    worker = dramatiq.Worker(broker, worker_timeout=10)
    with locks.lock("x"):
        worker.start()
        broker.join(actor.queue_name)
        worker.stop()
    assert [later.job_id for later in errors] == [None]


# Jobs that run inside of a job that enqueues them


@pytest.fixture
def connection(one_server: Server) -> Iterator[redis.Redis]:
    """A connection of RQ's."""
    with redis.Redis(unix_socket_path=one_server.socket) as connection:
        yield connection


def for_rq(job: Any, name: str) -> Any:
    """Declare a job for RQ, and put it where RQ finds it by its name."""
    declared = rq_integration.locked(job)
    declared.__qualname__ = name
    globals()[name] = declared
    return declared


def in_rq(connection: redis.Redis, job: Any, outer: Any, synchronous: bool) -> None:
    here = rq.Queue("here", connection=connection, is_async=False)
    inner = for_rq(job, "inner_of_rq")
    outer.enqueue_inner = lambda: rq_integration.enqueue(here, inner, 7)
    queue = here if synchronous else rq.Queue("there", connection=connection)
    rq_integration.enqueue(queue, for_rq(outer.job, "outer_of_rq"), 7)
    if not synchronous:
        rq.SimpleWorker([queue], connection=connection).work(burst=True)


def in_rq_worker(connection: redis.Redis, job: Any, outer: Any) -> None:
    in_rq(connection, job, outer, synchronous=False)


def in_rq_synchronously(connection: redis.Redis, job: Any, outer: Any) -> None:
    in_rq(connection, job, outer, synchronous=True)


def in_celery(connection: redis.Redis, job: Any, outer: Any) -> None:
    app = celery.Celery("hooks", task_cls=celery_integration.LockedTask, set_as_current=False)
    app.conf.update(task_always_eager=True)
    inner = app.task(shared=False, name="inner")(job)
    outer.enqueue_inner = lambda: inner.delay(7)
    app.task(shared=False, name="outer")(outer.job).delay(7)
    app.close()


def in_huey(connection: redis.Redis, job: Any, outer: Any) -> None:
    consumer = huey.MemoryHuey(immediate=True)
    consumer.task_wrapper_class = huey_integration.LockedTask
    inner = consumer.task(name="inner")(job)
    outer.enqueue_inner = lambda: inner(7)
    consumer.task(name="outer")(outer.job)(7)


def in_taskiq(connection: redis.Redis, job: Any, outer: Any) -> None:
    broker = taskiq.InMemoryBroker(await_inplace=True)
    inner = taskiq_integration.locked(broker, "inner")(job)
    outer.enqueue_inner = lambda: asyncio.run(taskiq_integration.enqueue(inner, 7))
    task = taskiq_integration.locked(broker, "outer")(outer.job)
    asyncio.run(taskiq_integration.enqueue(task, 7))


class Outer:
    """A job that enqueues another one, which runs at once; then it calls itself."""

    def __init__(self, locks: lualock.Locks) -> None:
        self.enqueue_inner: Callable[[], Any] = list
        self.done = False
        self.job: Any = locks.job(key="outer", unique="queued")(self.body)

    def body(self, shop_id: int) -> None:
        self.enqueue_inner()
        self.done = True


@pytest.mark.parametrize(
    "system", [in_rq_worker, in_rq_synchronously, in_celery, in_huey, in_taskiq]
)
def test_an_inner_job_has_its_delivery(
    locks: lualock.Locks, connection: redis.Redis, system: Any
) -> None:
    """A job that another one enqueues, and that runs at once, ends its own reservation."""
    ran: list[int] = []

    def body(shop_id: int) -> None:
        ran.append(shop_id)

    job: Any = locks.job(key="x", unique="queued")(body)
    outer = Outer(locks)
    system(connection, job, outer)
    assert (ran, outer.done) == ([7], True)
    assert free(locks, job)
    assert free(locks, outer.job, "outer")


# RQ finds a function by its name


class Reports:
    """A class with a job inside."""

    class Daily(lualock.LockedJob):
        """A job that RQ cannot find by its name."""

        lock_unique = "queued"

        @classmethod
        def perform(cls, shop_id: int) -> None: ...


def test_rq_refuses_a_class_in_a_class(locks: lualock.Locks) -> None:
    """A class that RQ cannot find by its name is refused when it is declared."""
    with pytest.raises(lualock.InvalidArgument, match=r"Reports\.Daily.*at the top of its module"):
        rq_integration.locked(Reports.Daily)


def test_rq_refuses_what_it_does_not_find(locks: lualock.Locks, connection: redis.Redis) -> None:
    """A function inside of another one is refused before it has a reservation."""

    def inside(shop_id: int) -> None: ...

    job = rq_integration.locked(locks.job(key="x", unique="queued")(inside))
    with pytest.raises(lualock.InvalidArgument, match="at the top of its module"):
        rq_integration.enqueue(rq.Queue(connection=connection), job, 7)
    assert free(locks, job)

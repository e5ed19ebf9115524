"""A process that works off jobs which do nothing, in a job system, one after the other.

``python -m bench.job_worker SYSTEM WAY URL JOBS`` enqueues them, runs the system's own worker in
this process, and prints the seconds from the first job's beginning to the last one's. ``WAY`` is
``plain`` or ``locked``. When the last job runs the process ends: not all workers know a way to.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lualock

NAME = "bench"
locks: lualock.Locks
times: list[float] = []
wanted = 0


def job(number: int) -> None:
    """The job itself: it looks at the clock."""
    times.append(time.perf_counter())
    if len(times) == wanted:
        os.write(1, f"{times[-1] - times[0]}\n".encode())  # Celery has taken sys.stdout for its log
        os._exit(0)


async def job_async(number: int) -> None:
    job(number)


def rq(url: str, locked: bool) -> None:
    import redis
    import rq

    from lualock.jobs.rq import locked as behind

    made = behind(locks.job(job)) if locked else job
    made.__module__, made.__qualname__ = "bench.job_worker", "found"
    sys.modules["bench.job_worker"] = sys.modules[__name__]
    globals()["found"] = made
    connection = redis.Redis.from_url(url)
    queue = rq.Queue(NAME, connection=connection)
    for number in range(wanted):
        queue.enqueue(made, number)
    rq.SimpleWorker([queue], connection=connection).work(logging_level="ERROR")


def celery(url: str, locked: bool) -> None:
    import celery

    from lualock.jobs.celery import LockedTask

    app = celery.Celery(NAME, broker=url, task_cls=LockedTask)
    app.conf.task_default_queue = NAME
    task = app.task(name=NAME)(locks.job(job) if locked else job)
    for number in range(wanted):
        task.delay(number)
    app.worker_main(["worker", "-P", "solo", "-l", "ERROR", "--without-gossip", "--without-mingle"])


def dramatiq(url: str, locked: bool) -> None:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    from lualock.jobs.dramatiq import LockedActor

    made: Any = RedisBroker
    broker = made(url=url)
    kind: Any = LockedActor if locked else dramatiq.Actor
    made = dramatiq.actor(actor_class=kind, broker=broker)
    actor = made(locks.job(job) if locked else job)
    for number in range(wanted):
        actor.send(number)
    dramatiq.Worker(broker, worker_threads=1).start()
    threading.Event().wait()


def huey(url: str, locked: bool) -> None:
    import huey

    from lualock.jobs.huey import LockedTask

    app = huey.RedisHuey(NAME, url=url)
    app.task_wrapper_class = LockedTask
    task = app.task()(locks.job(job) if locked else job)
    for number in range(wanted):
        task(number)
    app.create_consumer(workers=1).run()


async def arq(url: str, locked: bool) -> None:
    import arq
    from arq.connections import RedisSettings

    from lualock.jobs.arq import locked as behind

    async def plain(ctx: Any, number: int) -> None:
        await job_async(number)

    made = behind(locks.job(job_async)) if locked else plain
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    for number in range(wanted):
        await pool.enqueue_job(made.__qualname__, number)
    worker = arq.Worker([made], redis_pool=pool, max_jobs=1, poll_delay=0, handle_signals=False)
    await worker.async_run()


async def taskiq(url: str, locked: bool) -> None:
    from taskiq.api import run_receiver_task
    from taskiq_redis import ListQueueBroker

    from lualock.jobs.taskiq import locked as behind

    broker = ListQueueBroker(url)
    await broker.startup()
    task = behind(broker)(locks.job(job_async)) if locked else broker.task(job_async)
    for number in range(wanted):
        await task.kiq(number)
    await run_receiver_task(broker, max_async_tasks=1)


async def saq(url: str, locked: bool) -> None:
    import saq

    from lualock.jobs.saq import locked as behind

    async def plain(ctx: Any, *, number: int) -> None:
        await job_async(number)

    made = behind(locks.job(job_async)) if locked else plain
    queue = saq.Queue.from_url(url)
    for number in range(wanted):
        await queue.enqueue(made.__qualname__, number=number)
    await saq.Worker(queue, [made], concurrency=1).start()


SYSTEMS: dict[str, Callable[[str, bool], Any]] = {
    each.__name__: each for each in (rq, celery, dramatiq, huey, arq, taskiq, saq)
}


def main() -> None:
    global locks, wanted
    system, way, url, wanted = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    locks = lualock.connect(url)
    work = SYSTEMS[system](url, way == "locked")
    if work is not None:
        asyncio.run(work)


if __name__ == "__main__":
    main()

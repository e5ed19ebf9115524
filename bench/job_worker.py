"""A process that runs empty jobs of a job system, one after the other.

``python -m bench.job_worker SYSTEM URL ROUNDS JOBS`` puts all jobs into one queue, in each round so
many plain ones and then so many with a lock each, and runs the system's own worker in this process.
It prints, for each round, the seconds between two plain jobs, and between two locked ones. The last
job ends the process, because not all workers can be stopped.

"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import fmean
from typing import Any

import lualock

NAME = "bench"
WARM_UP = 50  # jobs of each kind before the first round
locks: lualock.Locks
rounds: int
jobs: int
begun: list[tuple[int, float]] = []  # the number of each job, and when it began


def numbers() -> Iterator[tuple[int, bool]]:
    """Yield all jobs, in the order of the queue, and whether they have a lock."""
    for number in range(2 * (WARM_UP + rounds * jobs)):
        yield number, bool(_block(number) % 2)


def _block(number: int) -> int:
    """Return the block of a job: the consecutive jobs of one kind; 0 and 1 are the warm-up."""
    past = number - 2 * WARM_UP
    return number // WARM_UP if past < 0 else 2 + past // jobs


def job(number: int) -> None:
    """Record the time: the job itself."""
    begun.append((number, time.perf_counter()))
    if len(begun) == 2 * (WARM_UP + rounds * jobs):
        output = json.dumps(_times())
        os.write(1, f"{output}\n".encode())  # Celery uses sys.stdout for its log
        os._exit(0)


def _times() -> list[tuple[float, float]]:
    """Return the mean times of each round. Not all systems keep the order exactly, so only two
    consecutive jobs of one block count."""
    took: dict[int, list[float]] = {}
    for (number, began), (following, then) in pairwise(begun):
        if _block(number) == _block(following):
            took.setdefault(_block(number), []).append(then - began)
    means = [fmean(took[block]) for block in sorted(took)[2:]]
    return list(zip(means[::2], means[1::2], strict=True))


async def job_async(number: int) -> None:
    job(number)


def rq(url: str) -> None:
    import redis
    import rq

    from lualock.integrations.rq import locked as behind

    def plain(number: int) -> None:
        job(number)

    def locked(number: int) -> None:
        job(number)

    ways = [plain, behind(locks.job(locked))]
    for made in ways:  # RQ finds what it runs by its name
        made.__module__, made.__qualname__ = "bench.job_worker", made.__name__
        globals()[made.__name__] = made
    sys.modules["bench.job_worker"] = sys.modules[__name__]
    connection = redis.Redis.from_url(url)
    queue = rq.Queue(NAME, connection=connection)
    for number, locked_ in numbers():
        queue.enqueue(ways[locked_], number)
    rq.SimpleWorker([queue], connection=connection).work(logging_level="ERROR")


def celery(url: str) -> None:
    import celery

    from lualock.integrations.celery import LockedTask

    app = celery.Celery(NAME, broker=url)
    app.conf.task_default_queue = NAME
    ways = [app.task(name="plain")(job), app.task(name="locked", base=LockedTask)(locks.job(job))]
    for number, locked in numbers():
        ways[locked].delay(number)
    app.worker_main(["worker", "-P", "solo", "-l", "ERROR", "--without-gossip", "--without-mingle"])


def dramatiq(url: str) -> None:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    from lualock.integrations.dramatiq import LockedActor

    made: Any = RedisBroker
    broker = made(url=url)
    declare: Any = dramatiq.actor
    ways = [
        declare(job, actor_name="plain", broker=broker),
        declare(locks.job(job), actor_name="locked", actor_class=LockedActor, broker=broker),
    ]
    for number, locked in numbers():
        ways[locked].send(number)
    dramatiq.Worker(broker, worker_threads=1).start()
    threading.Event().wait()


def huey(url: str) -> None:
    import huey

    from lualock.integrations.huey import LockedTask

    app = huey.RedisHuey(NAME, url=url)
    ways = [app.task(name="plain")(job)]
    app.task_wrapper_class = LockedTask
    ways.append(app.task(name="locked")(locks.job(job)))
    for number, locked in numbers():
        ways[locked](number)
    app.create_consumer(workers=1).run()


async def arq(url: str) -> None:
    import arq
    from arq.connections import RedisSettings

    from lualock.integrations.arq import locked as behind

    async def plain(ctx: Any, number: int) -> None:
        await job_async(number)

    ways = [plain, behind(locks.job(job_async))]
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    for number, locked in numbers():
        await pool.enqueue_job(ways[locked].__qualname__, number)
    worker = arq.Worker(ways, redis_pool=pool, max_jobs=1, poll_delay=0, handle_signals=False)
    await worker.async_run()


async def taskiq(url: str) -> None:
    from taskiq.api import run_receiver_task
    from taskiq_redis import ListQueueBroker

    from lualock.integrations.taskiq import locked as behind

    broker = ListQueueBroker(url)
    await broker.startup()
    ways: list[Any] = [
        broker.task("plain")(job_async),
        behind(broker, "locked")(locks.job(job_async)),
    ]
    for number, locked in numbers():
        await ways[locked].kiq(number)
    await run_receiver_task(broker, max_async_tasks=1)


async def saq(url: str) -> None:
    import saq

    from lualock.integrations.saq import locked as behind

    async def plain(ctx: Any, *, number: int) -> None:
        await job_async(number)

    ways = [plain, behind(locks.job(job_async))]
    queue = saq.Queue.from_url(url)
    for number, locked in numbers():
        await queue.enqueue(ways[locked].__qualname__, number=number)
    await saq.Worker(queue, ways, concurrency=1).start()


SYSTEMS: dict[str, Callable[[str], Any]] = {
    each.__name__: each for each in (rq, celery, dramatiq, huey, arq, taskiq, saq)
}


def main() -> None:
    global locks, rounds, jobs
    system, url, rounds, jobs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    locks = lualock.connect(url)
    work = SYSTEMS[system](url)
    if work is not None:
        asyncio.run(work)


if __name__ == "__main__":
    main()

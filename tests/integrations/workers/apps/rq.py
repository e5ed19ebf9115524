"""RQ: forks a process for each job."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import redis
import rq
from rq.scheduler import RQScheduler

from lualock.integrations.rq import enqueue, enqueue_in, horse_killed, locked, removed
from tests.integrations.workers import tasks
from tests.integrations.workers.apps import BROKER, DELAY_S, FLAKY, RETRY_S, outcome

connection = redis.Redis.from_url(BROKER)
queue = rq.Queue("tests", connection=connection)
jobs = {name: locked(job) for name, job in tasks.jobs(__name__, asynchronous=False).items()}
globals().update(jobs)  # RQ finds a job by its module and name


def send(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    options = {"retry": rq.Retry(max=1, interval=RETRY_S)} if job in FLAKY else {}
    return outcome(enqueue(queue, jobs[job], *args, **kwargs, **options))


def later(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return outcome(enqueue_in(queue, timedelta(seconds=DELAY_S), jobs[job], *args, **kwargs))


def remove(job: str, job_id: str, args: list[Any]) -> None:
    queued = rq.job.Job.fetch(job_id, connection=connection)
    queued.cancel()
    removed(queued)


if __name__ == "__main__":
    if sys.argv[1:] == ["scheduler"]:
        # A process of its own: one that is killed in a worker is replaced only after a minute.
        RQScheduler([queue], connection=connection).work()  # type: ignore[no-untyped-call]
    else:
        kind = getattr(rq.worker, sys.argv[1]) if sys.argv[1:] else rq.Worker
        worker = kind([queue], connection=connection, work_horse_killed_handler=horse_killed)
        worker.work(logging_level="INFO")

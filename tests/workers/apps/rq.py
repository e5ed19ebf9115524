"""RQ: forks a process for each job."""

from __future__ import annotations

from typing import Any

import redis
import rq

from tests.workers import tasks
from tests.workers.apps import BROKER

connection = redis.Redis.from_url(BROKER)
queue = rq.Queue("tests", connection=connection)
jobs = tasks.jobs(__name__, asynchronous=False)
globals().update(jobs)  # RQ finds a job by its module and name


def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    return queue.enqueue(jobs[job], args=args, kwargs=kwargs, **options).id


if __name__ == "__main__":
    rq.Worker([queue], connection=connection).work(with_scheduler=True, logging_level="INFO")

"""SAQ: an event loop a worker; jobs have keyword arguments only."""

from __future__ import annotations

import inspect
from typing import Any

import saq

from tests.workers import tasks
from tests.workers.apps import BROKER

queue = saq.Queue.from_url(BROKER, name="tests")
jobs = tasks.jobs(__name__, asynchronous=True)


def function(job: Any) -> Any:
    async def run(ctx: Any, **kwargs: Any) -> Any:
        return await job(**kwargs)

    return run


settings = {
    "queue": queue,
    "functions": [(name, function(job)) for name, job in jobs.items()],
    "concurrency": 4,
}


async def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    named = inspect.signature(jobs[job]).bind(*args, **kwargs).arguments
    return (await queue.enqueue(saq.Job(job, kwargs=dict(named), **options))).key

"""SAQ: an event loop a worker; jobs have keyword arguments only."""

from __future__ import annotations

import inspect
import time
from typing import Any

import saq

from lualock.integrations.saq import enqueue, locked, removed
from tests.integrations.workers import tasks
from tests.integrations.workers.apps import BROKER, DELAY_S, FLAKY, RETRY_S, outcome

queue = saq.Queue.from_url(BROKER, name="tests")
jobs = {name: locked(job) for name, job in tasks.jobs(__name__, asynchronous=True).items()}
settings = {
    "queue": queue,
    "functions": list(jobs.values()),
    "concurrency": 4,
    # Once, before there are jobs: it takes a job that is just being taken as stuck.
    "timers": {"sweep": 3600},
}


async def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    named = inspect.signature(jobs[job]).bind(*args, **kwargs).arguments
    without_limit: dict[str, Any] = {"timeout": 0} | (
        {"retries": 2, "retry_delay": RETRY_S} if job in FLAKY else {}
    )
    return outcome(await enqueue(queue, jobs[job], **named, **without_limit, **options))


async def later(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return await send(job, args, kwargs, scheduled=int(time.time()) + DELAY_S)


async def remove(job: str, job_id: str, args: list[Any]) -> None:
    queued = await queue.job(job_id)
    assert queued is not None
    await queued.abort("not wanted any more")
    await removed(jobs[job], queued)

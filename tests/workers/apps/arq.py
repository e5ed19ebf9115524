"""arq: an event loop a worker."""

from __future__ import annotations

from typing import Any

import arq
from arq.connections import RedisSettings

from tests.workers import tasks
from tests.workers.apps import BROKER

settings = RedisSettings.from_dsn(BROKER)
jobs = tasks.jobs(__name__, asynchronous=True)
_pool: Any = None


def function(name: str, job: Any) -> Any:
    async def run(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        return await job(*args, **kwargs)

    return arq.func(run, name=name)


class WorkerSettings:
    functions = [function(name, job) for name, job in jobs.items()]  # noqa: RUF012  # arq reads a list
    redis_settings = settings
    poll_delay = 0.1
    max_jobs = 4


async def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    global _pool
    _pool = _pool or await arq.create_pool(settings)
    return (await _pool.enqueue_job(job, *args, **kwargs, **options)).job_id

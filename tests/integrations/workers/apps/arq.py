"""arq: an event loop a worker."""

from __future__ import annotations

from typing import Any

import arq
from arq.connections import RedisSettings

from lualock.integrations.arq import enqueue, locked, removed
from tests.integrations.workers import tasks
from tests.integrations.workers.apps import BACK_S, BROKER, DELAY_S, RETRY_S, outcome

tasks.flop = lambda: arq.Retry(defer=RETRY_S)
settings = RedisSettings.from_dsn(BROKER)
jobs = {name: locked(job) for name, job in tasks.jobs(__name__, asynchronous=True).items()}
_pool: Any = None


class WorkerSettings:
    functions = tuple(jobs.values())
    redis_settings = settings
    poll_delay = 0.1
    max_jobs = 4
    max_tries = 2
    job_timeout = BACK_S - 10  # and ten seconds after that, lost jobs come back


async def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    global _pool
    _pool = _pool or await arq.create_pool(settings)
    return outcome(await enqueue(_pool, jobs[job], *args, **kwargs, **options))


async def later(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return await send(job, args, kwargs, _defer_by=DELAY_S)


async def remove(job: str, job_id: str, args: list[Any]) -> None:
    await _pool.zrem(arq.constants.default_queue_name, job_id)
    await removed(jobs[job], job_id, *args)

"""taskiq: an event loop a worker, here with coroutine functions."""

from __future__ import annotations

from typing import Any

from taskiq_redis import RedisStreamBroker

from tests.workers import tasks
from tests.workers.apps import BROKER

broker = RedisStreamBroker(BROKER)
jobs = {
    name: broker.task(name)(job) for name, job in tasks.jobs(__name__, asynchronous=True).items()
}


async def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    return (await jobs[job].kicker().with_labels(**options).kiq(*args, **kwargs)).task_id

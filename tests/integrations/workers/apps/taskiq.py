"""taskiq: an event loop a worker, here with coroutine functions."""

from __future__ import annotations

from typing import Any

from taskiq import SmartRetryMiddleware, TaskiqScheduler
from taskiq_redis import ListRedisScheduleSource, RedisStreamBroker

from lualock.integrations.taskiq import enqueue, locked
from tests.integrations.workers import tasks
from tests.integrations.workers.apps import BACK_S, BROKER, FLAKY, RETRY_S, outcome

# Tasks that were enqueued before the first worker came run too, and a loop that is starved while
# thirty processes start gives up no connection.
broker = RedisStreamBroker(
    BROKER, consumer_id="0", socket_timeout=60, idle_timeout=BACK_S * 1000
).with_middlewares(SmartRetryMiddleware(default_delay=RETRY_S))
source = ListRedisScheduleSource(BROKER)
scheduler = TaskiqScheduler(broker, [source])
SCHEDULED = ("patient",)
"""The jobs that wait in a schedule until they are tried again; the others wait in their worker."""
jobs = {
    name: locked(
        broker,
        name,
        schedule_source=source if name in SCHEDULED else None,
        retry_on_error=name in FLAKY,
        max_retries=2,
    )(job)
    for name, job in tasks.jobs(__name__, asynchronous=True).items()
}


async def send(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return outcome(await enqueue(jobs[job], *args, **kwargs))

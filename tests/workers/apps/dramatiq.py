"""Dramatiq, with two threads a process."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from tests.workers import tasks
from tests.workers.apps import BROKER

broker = RedisBroker(url=BROKER)
dramatiq.set_broker(broker)
jobs = {
    name: dramatiq.actor(actor_name=name)(job)
    for name, job in tasks.jobs(__name__, asynchronous=False).items()
}


def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    return jobs[job].send_with_options(args=args, kwargs=kwargs, **options).message_id

"""Huey, with two processes a consumer."""

from __future__ import annotations

from typing import Any

from huey import RedisHuey

from tests.workers import tasks
from tests.workers.apps import BROKER

huey = RedisHuey("tests", url=BROKER)
jobs = {
    name: huey.task(name=name)(job)
    for name, job in tasks.jobs(__name__, asynchronous=False).items()
}


def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    return huey.enqueue(jobs[job].s(*args, **kwargs, **options)).id

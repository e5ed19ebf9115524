"""Huey, with two processes a consumer."""

from __future__ import annotations

from typing import Any

from huey import RedisHuey

from lualock.integrations.huey import LockedTask
from tests.integrations.workers import tasks
from tests.integrations.workers.apps import BROKER, DELAY_S, FLAKY, RETRY_S, outcome

huey = RedisHuey("tests", url=BROKER)
huey.task_wrapper_class = LockedTask
jobs = {
    name: huey.task(name=name, retries=int(name in FLAKY), retry_delay=RETRY_S)(job)
    for name, job in tasks.jobs(__name__, asynchronous=False, classes=False).items()
}


def send(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return outcome(jobs[job].enqueue(*args, **kwargs))


def later(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return outcome(jobs[job].enqueue(*args, **kwargs, delay=DELAY_S))


def remove(job: str, job_id: str, args: list[Any]) -> None:
    huey.revoke_by_id(job_id)

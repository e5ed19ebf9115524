"""Celery, with its pool of processes."""

from __future__ import annotations

from typing import Any

import celery

from tests.workers import tasks
from tests.workers.apps import BROKER

app = celery.Celery("tests", broker=BROKER)
app.conf.update(worker_prefetch_multiplier=1, task_default_queue="celery-tests")
jobs = {
    name: app.task(name=name)(job)
    for name, job in tasks.jobs(__name__, asynchronous=False).items()
}


def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    return jobs[job].apply_async(args, kwargs, **options).id

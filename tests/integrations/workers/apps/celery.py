"""Celery, with its pool of processes."""

from __future__ import annotations

from typing import Any

import celery

from lualock.integrations.celery import LockedTask
from tests.integrations.workers import tasks
from tests.integrations.workers.apps import BROKER, DELAY_S, FLAKY, RETRY_S

app = celery.Celery("tests", broker=BROKER, task_cls=LockedTask)
app.conf.update(worker_prefetch_multiplier=1, task_default_queue="celery-tests")
RETRIES = {
    "autoretry_for": (tasks.Flop,),
    "retry_kwargs": {"countdown": RETRY_S, "max_retries": 1},
}
OPTIONS: dict[str, Any] = dict.fromkeys(FLAKY, RETRIES) | {
    "limited": {"time_limit": 1},
    "requeued": {"acks_late": True, "reject_on_worker_lost": True},
}
SIGNALS = {"terminated": "SIGKILL", "waiting": "SIGKILL", "lingering": "SIGTERM"}
jobs = {
    name: app.task(name=name, **OPTIONS.get(name, {}))(job)
    for name, job in tasks.jobs(__name__, asynchronous=False, classes=False).items()
}


def send(job: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Any:
    result = jobs[job].apply_async(args, kwargs, **options)
    state = "enqueued" if result.refused is None else result.refused.state
    return {"state": state, "job_id": result.id}


def later(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    while len(app.control.ping()) < 2:
        """Who is not there yet does not hear of what is revoked."""
    return send(job, args, kwargs, countdown=DELAY_S)


def remove(job: str, job_id: str, args: list[Any]) -> None:
    signal = SIGNALS.get(job)
    app.control.revoke(job_id, terminate=signal is not None, signal=signal)

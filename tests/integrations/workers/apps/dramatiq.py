"""Dramatiq, with two threads a process."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from lualock.integrations.dramatiq import LockedActor
from tests.integrations.workers import tasks
from tests.integrations.workers.apps import BACK_S, BROKER, DELAY_S, FLAKY, RETRY_S, outcome

# The messages of a dead worker come back when it has been silent for a while, to any worker that
# looks; here that is soon, and often.
broker = RedisBroker(  # type: ignore[no-untyped-call]  # Dramatiq has types in part
    url=BROKER, heartbeat_timeout=BACK_S * 1000, maintenance_chance=100_000
)
dramatiq.set_broker(broker)
BACKOFF: dict[str, Any] = {"min_backoff": RETRY_S * 1000, "max_backoff": RETRY_S * 1000}
jobs: dict[str, Any] = {
    name: dramatiq.actor(
        actor_class=LockedActor, actor_name=name, max_retries=int(name in FLAKY), **BACKOFF
    )(job)
    for name, job in tasks.jobs(__name__, asynchronous=False, classes=False).items()
}


def send(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return outcome(jobs[job].enqueue(*args, **kwargs))


def later(job: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    # It is too old when it is due, and so is skipped: the only way to take a message back.
    return outcome(
        jobs[job].enqueue_with_options(args=args, kwargs=kwargs, delay=DELAY_S * 1000, max_age=1)
    )


def remove(job: str, job_id: str, args: list[Any]) -> None:
    """Do nothing: see ``later``."""

"""The Celery worker with a pool of green threads of ``tests/transport/test_green.py``."""

from __future__ import annotations

import os

import celery

import lualock
from lualock import jobs
from lualock.integrations.celery import LockedTask
from tests.integrations.workers.diary import Diary

app = celery.Celery("tests", broker=os.environ["LUALOCK_URL"], task_cls=LockedTask)
locks = lualock.connect(os.environ["LUALOCK_URL"])
diary = Diary(os.environ["LUALOCK_DIARY"])


@locks.job(key="held", policy=jobs.Wait(2), on_skipped=lambda: diary.write("failed", "gives_up"))
def gives_up() -> None:
    """Wait for a held lock, with a short timeout."""
    diary.write("ran", "gives_up")


@locks.job(key="held", policy=jobs.Wait(30))
def is_handed_it() -> None:
    """Wait for a held lock until it is released."""
    diary.write("ran", "is_handed_it")


@locks.job
def free() -> None:
    """Run with a lock of its own."""
    diary.write("ran", "free")


for job in (gives_up, is_handed_it, free):
    app.task(name=job.__name__)(job)

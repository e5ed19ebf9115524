"""What a Celery worker's main process sees of a locked task: that its process is gone.

That a signal was sent, or a time limit was reached, says nothing yet: a task may catch the signal,
clean up for a while, or never be hit by it. Its lock is freed early only once there is no such
process any more; what lives on keeps it, by its lease.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from billiard.exceptions import Terminated, WorkerLostError
from celery.worker.request import Request

from lualock.errors import LockError
from lualock.jobs.bound import JobAdapter
from lualock.jobs.celery import HEADER

log = logging.getLogger("lualock.jobs")

ENDS = Terminated, WorkerLostError, SystemExit, KeyboardInterrupt
"""What a worker is told of a task whose process has ended, or is about to."""

WATCH_S, LOOK_S = 60.0, 0.1
"""For how long a process is watched that should end, and how often it is looked at."""


class LockedRequest(Request):  # type: ignore[misc]  # Celery has no types
    """The request of a :class:`lualock.jobs.celery.LockedTask`."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        if not soft:
            self._free()

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        super().on_failure(exc_info, *args, **kwargs)
        if issubclass(exc_info.type, ENDS):  # (its exception is wrapped)
            self._free()

    def _free(self) -> None:
        work, pid = getattr(self.task, "work", None), self.worker_pid
        if isinstance(work, JobAdapter) and pid and pid != os.getpid():
            told = work, self.args, self.kwargs, self.id, self.request_dict.get(HEADER), pid
            threading.Thread(target=_free_when_gone, args=told, daemon=True).start()


def _free_when_gone(
    work: JobAdapter, args: Any, kwargs: Any, task_id: str, token: str | None, pid: int
) -> None:
    """Free the lock of a task once the process that ran it is gone, and not before."""
    give_up = time.monotonic() + WATCH_S
    while _lives(pid):
        if time.monotonic() > give_up:
            return
        time.sleep(LOOK_S)
    try:
        work.died(args, kwargs, job_id=task_id, token=token, pid=pid)
    except LockError as error:
        log.warning("the lock of task %s, which was killed, ends by itself: %s", task_id, error)


def _lives(pid: int) -> bool:
    """Whether there is such a process. One that is dead is there until its parent has seen it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

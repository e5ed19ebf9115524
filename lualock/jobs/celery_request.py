"""What a Celery worker's main process sees of a locked task: that its process is gone.

That a signal was sent, or a time limit was reached, says nothing yet: a task may catch the signal,
clean up for a while, or never be hit by it. Its lock is freed early only once there is no such
process any more; what lives on keeps it, by its lease.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from billiard.exceptions import Terminated
from celery.worker.request import Request

from lualock.jobs.bound import Bound
from lualock.jobs.celery import HEADER, free_dead

WATCH_S, LOOK_S = 60.0, 0.1
"""For how long a process is watched that should end, and how often it is looked at."""


class LockedRequest(Request):  # type: ignore[misc]  # Celery has no types
    """The request of a :class:`lualock.jobs.celery.LockedTask`."""

    def terminate(self, pool: Any, signal: Any = None) -> None:
        super().terminate(pool, signal)
        self._watch()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        if not soft:
            self._watch()

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        error = exc_info.exception
        # (That the worker was lost, the signal task_failure tells.)
        if isinstance(error, Terminated | SystemExit | KeyboardInterrupt):
            self._watch()
        super().on_failure(exc_info, *args, **kwargs)

    def _watch(self) -> None:
        work, pid = getattr(self.task, "work", None), self.worker_pid
        if isinstance(work, Bound) and pid and pid != os.getpid():
            token = (self.request_dict or {}).get(HEADER)
            told = work, self.args, self.kwargs, self.id, token, pid
            threading.Thread(target=free_when_gone, args=told, daemon=True).start()


def free_when_gone(
    work: Bound, args: Any, kwargs: Any, task_id: str, token: str | None, pid: int
) -> None:
    """Free the lock of a task once the process that ran it is gone, and not before."""
    give_up = time.monotonic() + WATCH_S
    while _lives(pid):
        if time.monotonic() > give_up:
            return
        time.sleep(LOOK_S)
    free_dead(work, args, kwargs, task_id, token, pid)


def _lives(pid: int) -> bool:
    """Whether there is such a process. One that is dead is there until its parent has seen it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Release the lock of a Celery task when its worker process is dead, from the main process.

A signal that was sent, or a time limit that was reached, proves nothing: the task may catch the
signal, clean up for a while, or never receive it. Its lock is released early only when the process
does not exist any more. A live process keeps the lock, for its lease.
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
from lualock.integrations.celery import HEADER
from lualock.jobs import JobAdapter

log = logging.getLogger("lualock.jobs")

_PROCESS_ENDS = Terminated, WorkerLostError, SystemExit, KeyboardInterrupt
"""The errors of a task whose process has ended, or is about to."""

_WATCH_S, _CHECK_EVERY_S = 60.0, 0.1
"""How long, and how often, a process that should end is checked."""


class LockedRequest(Request):  # type: ignore[misc]  # Celery has no types
    """The request of a :class:`lualock.integrations.celery.LockedTask`."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        if not soft:
            self._release_lock()

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        super().on_failure(exc_info, *args, **kwargs)
        if issubclass(exc_info.type, _PROCESS_ENDS):  # (its exception is wrapped)
            self._release_lock()

    def _release_lock(self) -> None:
        adapter, pid = getattr(self.task, "work", None), self.worker_pid
        if isinstance(adapter, JobAdapter) and pid and pid != os.getpid():
            token = self.request_dict.get(HEADER)
            arguments = adapter, self.args, self.kwargs, self.id, token, pid
            threading.Thread(target=_release_when_dead, args=arguments, daemon=True).start()


def _release_when_dead(
    adapter: JobAdapter, args: Any, kwargs: Any, task_id: str, token: str | None, pid: int
) -> None:
    """Release the lock of a task once the process that ran it does not exist any more."""
    give_up_at = time.monotonic() + _WATCH_S
    while _exists(pid):
        if time.monotonic() > give_up_at:
            return
        time.sleep(_CHECK_EVERY_S)
    try:
        adapter.died(args, kwargs, job_id=task_id, token=token, pid=pid)
    except LockError as error:
        log.warning("the lock of killed task %s expires on its own: %s", task_id, error)


def _exists(pid: int) -> bool:
    """Return whether a process exists. A dead one does until its parent has waited for it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

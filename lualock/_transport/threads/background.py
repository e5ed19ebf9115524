"""Clean-up that threads could not finish in time, in the background."""

from __future__ import annotations

import heapq
import itertools
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lualock._core import fork
from lualock._protocol import Clock, RunScript
from lualock.errors import LockError, LockUnavailable

log = logging.getLogger("lualock")

GRACE_S = 0.02
"""How long a caller waits for its own clean-up: from its interruption, or the end of its time."""

PATIENCE_S = 60.0
"""How long a call is tried again."""

PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 2.0
"""The pause between two tries; it doubles each time."""


@dataclass(order=True)
class _Task:
    """One call, and when to make it."""

    at: float
    number: int
    make: Callable[[RunScript], Any] = field(compare=False)
    call: RunScript = field(compare=False)
    give_up_at: float = field(compare=False)
    pause_s: float = field(default=PAUSE_MIN_S / 2, compare=False)
    tried: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.call.script.name} of an unknown outcome"


class BackgroundCleanup:
    """A thread that makes calls until they are answered. It runs only while there are calls."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """Drop all tasks: what the parent sent is cleaned up by the parent."""
        self._lock = threading.RLock()  # a destructor may add a task at any moment
        self._numbers = itertools.count()
        self._tasks: list[_Task] = []
        self._runs = False
        self._changed = threading.Condition(self._lock)

    def add(self, make: Callable[[RunScript], Any], call: RunScript, at: float = 0.0) -> None:
        """Make this call at that time, or as soon as the server answers again."""
        at = max(at, self._clock())
        task = _Task(at, next(self._numbers), make, replace(call, until=None), at + PATIENCE_S)
        try:
            with self._lock:
                heapq.heappush(self._tasks, task)
                self._changed.notify()
                if self._runs or sys.is_finalizing():  # then no thread can start any more
                    return
                self._runs = True
            threading.Thread(target=self._run, name="lualock-cleanup", daemon=True).start()
        except BaseException:
            self._runs = False  # the next task starts a thread, for this one too; two do no harm
            raise

    def drop_future(self) -> None:
        """Drop the tasks that are not due yet."""
        with self._lock:
            now = self._clock()
            self._tasks = [task for task in self._tasks if task.at <= now or task.tried]
            heapq.heapify(self._tasks)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                while self._tasks and (nap_s := self._tasks[0].at - self._clock()) > 0:
                    self._changed.wait(nap_s)
                if not self._tasks:
                    self._runs = False
                    return
                task = heapq.heappop(self._tasks)
            try:
                task.make(task.call)
            except LockUnavailable as error:
                self._retry(task, error)
            except LockError as error:
                log.warning("%s failed: %s", task, error)
            except BaseException as error:  # whatever it is, no other thread cleans up
                self._retry(task, error)

    def _retry(self, task: _Task, error: BaseException) -> None:
        task.tried = True
        now, task.pause_s = self._clock(), min(task.pause_s * 2, PAUSE_MAX_S)
        if now < task.give_up_at:
            task.at = now + task.pause_s
            with self._lock:
                heapq.heappush(self._tasks, task)
        else:
            log.warning("%s was given up: %r", task, error)

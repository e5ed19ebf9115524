"""What threads could not finish in time is finished behind their backs."""

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

PATIENCE_S = 60.0
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 2.0


@dataclass(order=True)
class _Chore:
    """One call, and when to make it."""

    at: float
    number: int
    make: Callable[[RunScript], Any] = field(compare=False)
    call: RunScript = field(compare=False)
    give_up: float = field(compare=False)
    pause_s: float = field(default=PAUSE_MIN_S / 2, compare=False)
    tried: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.call.script.name} of an unknown outcome"


class BackgroundCleanup:
    """A thread, only while there is something to do, that makes calls until they are answered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """A child has nothing to clean up: what its parent sent is its parent's."""
        self._lock = threading.RLock()  # what is left over comes whenever an object is destroyed
        self._numbers = itertools.count()
        self._todo: list[_Chore] = []
        self._works = False
        self._more = threading.Condition(self._lock)

    def add(self, make: Callable[[RunScript], Any], call: RunScript, at: float = 0.0) -> None:
        """Make this call at some time, or as soon as the server answers again."""
        at = max(at, self._clock())
        chore = _Chore(at, next(self._numbers), make, replace(call, until=None), at + PATIENCE_S)
        try:
            with self._lock:
                heapq.heappush(self._todo, chore)
                self._more.notify()
                if self._works or sys.is_finalizing():  # then no thread can start any more
                    return
                self._works = True
            threading.Thread(target=self._run, name="lualock-cleaner", daemon=True).start()
        except BaseException:
            self._works = False  # the next chore starts one, for this one too; two do no harm
            raise

    def forget(self) -> None:
        """Do not do what is only to be done later."""
        with self._lock:
            now = self._clock()
            self._todo = [chore for chore in self._todo if chore.at <= now or chore.tried]
            heapq.heapify(self._todo)
            self._more.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                while self._todo and (nap_s := self._todo[0].at - self._clock()) > 0:
                    self._more.wait(nap_s)
                if not self._todo:
                    self._works = False
                    return
                chore = heapq.heappop(self._todo)
            try:
                chore.make(chore.call)
            except LockUnavailable as error:
                self._again(chore, error)
            except LockError as error:
                log.warning("%s failed: %s", chore, error)
            except BaseException as error:  # whatever it is, nobody else cleans up
                self._again(chore, error)

    def _again(self, chore: _Chore, error: BaseException) -> None:
        chore.tried = True
        now, chore.pause_s = self._clock(), min(chore.pause_s * 2, PAUSE_MAX_S)
        if now < chore.give_up:
            chore.at = now + chore.pause_s
            with self._lock:
                heapq.heappush(self._todo, chore)
        else:
            log.warning("%s was given up: %r", chore, error)

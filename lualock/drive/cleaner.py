"""What threads could not finish in time is finished behind their backs."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lualock import fork
from lualock.errors import LockError, LockUnavailable
from lualock.protocol import Call, Clock

log = logging.getLogger("lualock")

PATIENCE_S = 60.0
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 2.0


class Cleaner:
    """A thread, only while there is something to do, that makes calls until they are answered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """A child has nothing to clean up: what its parent sent is its parent's."""
        self._lock = threading.Lock()
        self._todo: deque[tuple[Callable[[Call], Any], Call, float]] = deque()
        self._works = False

    def add(self, make: Callable[[Call], Any], call: Call) -> None:
        """Make this call, as soon as the server answers again."""
        with self._lock:
            self._todo.append((make, replace(call, until=None), self._clock() + PATIENCE_S))
            if self._works:
                return
            self._works = True
        threading.Thread(target=self._run, name="lualock-cleaner", daemon=True).start()

    def _run(self) -> None:
        pause_s = PAUSE_MIN_S
        while True:
            with self._lock:
                if not self._todo:
                    self._works = False
                    return
                make, call, give_up = self._todo[0]
            try:
                make(call)
            except LockUnavailable as error:
                if self._clock() < give_up:
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 2, PAUSE_MAX_S)
                    continue
                log.warning("%s of an unknown outcome was given up: %s", call.script.name, error)
            except LockError as error:
                log.warning("%s of an unknown outcome failed: %s", call.script.name, error)
            pause_s = PAUSE_MIN_S
            self._todo.popleft()

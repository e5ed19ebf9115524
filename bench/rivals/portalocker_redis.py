"""portalocker's ``RedisLock``: the only subscriber of a channel has the lock, for as long as its
connection lives. There is no lease."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import portalocker

from bench.rivals.base import Rival

PATIENCE_S = 60.0


class Portalocker(Rival):
    """As installed, with enough time to wait. No lease: its lock ends with a connection."""

    tuning: ClassVar[dict[str, Any]] = {}

    def lock(self, key: str) -> AbstractContextManager[object]:
        return portalocker.RedisLock(key, connection=self.client, timeout=PATIENCE_S, **self.tuning)


class PortalockerTuned(Portalocker):
    """Its best settings: its thread and its waiter check each millisecond."""

    tuning: ClassVar[dict[str, Any]] = {"thread_sleep_time": 0.001, "check_interval": 0.001}

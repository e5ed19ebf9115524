"""Another process that holds a lock, for a test to release, kill and pause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

from lualock._core import options
from lualock._core.options import Seconds
from lualock.errors import LockError


class OtherProcess:
    """A process that holds a lock from the creation of this object until ``release()``."""

    def __init__(
        self,
        url: str,
        prefix: str,
        key: bytes,
        ttl: Seconds | None,
        metadata: str,
    ) -> None:
        ttl_s = None if ttl is None else options.ttl_ms(ttl) / 1000
        request = {"prefix": prefix, "key": key.hex(), "ttl": ttl_s, "metadata": metadata}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lualock.testing.holder", json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # The process must import the same lualock.
            env=os.environ | {"LUALOCK_URL": url, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        message: dict[str, Any] = {"error": "could not hold the lock: the process died"}
        if line:
            message = json.loads(line)
        if "error" in message:
            self.kill()
            raise LockError(message["error"])
        self.fence: int = message["fence"]

    def __enter__(self) -> OtherProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Make the process release the lock and end. Do nothing if it is dead."""
        self.resume()
        self._end()

    def kill(self) -> None:
        """Kill the process with SIGKILL: the lock stays until its lease expires."""
        self._process.kill()
        self._end()

    def pause(self) -> None:
        """Stop the process with SIGSTOP: it renews nothing, and does not notice a loss."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the process with SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self) -> None:
        self._process.communicate()  # the process ends when its standard input is closed

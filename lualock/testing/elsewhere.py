"""Another process, which has a lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import TracebackType

from lualock.errors import LockError


class OtherProcess:
    """A process that took a lock when this was made, and has it until it is told to release it."""

    def __init__(
        self,
        url: str,
        prefix: str,
        name: str | bytes,
        key: bytes,
        ttl: float | None,
        metadata: str,
    ) -> None:
        raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
        told = {"prefix": prefix, "name": raw.hex(), "ttl": ttl, "metadata": metadata}
        told["key"] = key.hex()  # that of a queued job's place is not its name's
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lualock.testing.holder", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # It must find lualock where this process did.
            env=os.environ | {"LUALOCK_URL": url, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        said = json.loads(self._process.stdout.readline() or '{"error": "the holder died"}')
        if "error" in said:
            self.kill()
            raise LockError(said["error"])
        self.fence: int = said["fence"]

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
        """Have it give the lock back, and end. Does nothing if it is dead."""
        self.resume()
        self._end()

    def kill(self) -> None:
        """SIGKILL: the lock stays until its lease ends."""
        self._process.kill()
        self._end()

    def pause(self) -> None:
        """SIGSTOP: it renews nothing, and does not know that its lease ends."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self) -> None:
        self._process.communicate()  # it ends when there is nothing more to read

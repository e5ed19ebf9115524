"""The servers of the test matrix: every binary that is installed, started once a session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import Any

import redis

from lualock.embedded import binaries
from tests.support.waiting import wait_until


@dataclass
class Server:
    """A server that the tests start. ``url`` is its unix socket, ``tcp_url`` its TCP port."""

    name: str
    path: str
    config: tuple[str, ...] = ()
    password: str | None = None
    folder: str = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ll-", dir="/tmp")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket]
        options += ["--save", "", "--appendonly", "no", "--dir", self.folder, *self.config]
        if self.password:
            options += ["--requirepass", self.password]
        self.process = subprocess.Popen(
            [self.path, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: _answers(self.socket), wait_s=10, what=f"{self.name} answers")
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def socket(self) -> str:
        return os.path.join(self.folder, "s")

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        """Return a plain client, which reads the server without lualock."""
        # RESP2, because the server below the floor has no other.
        return redis.Redis(unix_socket_path=self.socket, password=self.password, protocol=2)


def _answers(path: str) -> bool:
    """Whether a server that has loaded its data answers there (with a password: refuses)."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


TIER = os.environ.get("LUALOCK_TESTS", "test")
"""How much is tested: ``quick``, ``test`` or ``all`` (see CONTRIBUTING.md)."""

INSTALLED = {binary.name: binary.path for binary in binaries.every()}
"""Every server program of this machine, best first."""

BINARIES = dict(list(INSTALLED.items())[: None if TIER == "all" else 1])
"""The servers of the tier: all that are installed, or the first."""

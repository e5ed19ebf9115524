"""A private server for one run of the benchmark."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis

from lualock.embedded import binaries

PATIENCE_S = 10.0


@dataclass(frozen=True)
class Server:
    """A running server: its address, its process, and its version."""

    tcp_url: str
    unix_url: str
    pid: int
    version: str


@contextmanager
def started(program: str | None = None) -> Iterator[Server]:
    """Start a server on a free port and a unix socket; remove everything at the end."""
    with tempfile.TemporaryDirectory(prefix="lualock-bench-", dir="/tmp") as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        path = os.path.join(folder, "s")
        command = [program or binaries.find().path, "--port", str(port), "--bind", "127.0.0.1"]
        command += ["--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                yield Server(
                    f"redis://127.0.0.1:{port}", f"unix://{path}", process.pid, _version(client)
                )
        finally:
            process.kill()
            process.wait()


def _version(client: redis.Redis) -> str:
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            info = client.info("server")
        except redis.ConnectionError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return (
                f"valkey {info['valkey_version']}"
                if "valkey_version" in info
                else f"redis {info['redis_version']}"
            )

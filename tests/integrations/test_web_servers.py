"""Web servers with two processes: gunicorn that imports the program before it forks, uvicorn."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

import lualock
from tests.project.test_layers import ROOT
from tests.support.servers import Server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.full

APP = "tests.integrations.web_apps"
SERVERS = {
    "gunicorn": f"-m gunicorn {APP}:plain --preload -w 2 -b 127.0.0.1:%d",
    "uvicorn": f"-m uvicorn {APP}:asynchronous --workers 2 --port %d",
}


def ask(port: int, path: str = "/") -> int:
    """Send a request; return the process that answered it."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=40)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return int(answer.read())


def answers(port: int, path: str = "/") -> bool:
    with suppress(OSError, http.client.HTTPException):
        ask(port, path)
        return True
    return False


@pytest.mark.parametrize("name", SERVERS)
def test_two_processes(one_server: Server, tmp_path: Path, name: str) -> None:
    """The requests of both exclude each other, a killed process frees its lock, and the exit of the
    server frees what it holds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with one_server.client() as client, open(tmp_path / "log", "wb") as log:
        client.flushall()
        server = subprocess.Popen(
            [sys.executable, *(SERVERS[name] % port).split()],
            env=os.environ | {"LUALOCK_URL": one_server.tcp_url, "PYTHONPATH": str(ROOT.parent)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_until(lambda: answers(port), wait_s=30)
            pids: set[int] = set()
            with ThreadPoolExecutor(16) as threads:
                for _ in range(50):
                    pids.update(threads.map(lambda _: ask(port), range(100)))
                    if len(pids) == 2:
                        break
            assert len(pids) == 2, pids
            assert client.get("overlaps") is None
            threading.Thread(target=answers, args=[port, "/hold"], daemon=True).start()
            wait_until(lambda: client.get("holder"), wait_s=20)
            os.kill(int(client.get("holder")), signal.SIGKILL)
            with lualock.connect(one_server.tcp_url) as locks:
                with locks.lock("held").acquire(timeout=10):
                    assert answers(port)
                if name == "gunicorn":  # its master has the program, and the lease
                    assert locks.lock("held by the master").locked()
                server.send_signal(signal.SIGTERM)
                assert server.wait(15) == 0
                if name == "gunicorn":
                    wait_until(lambda: not locks.lock("held by the master").locked(), wait_s=2)
                assert not locks.lock("counter").locked()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)

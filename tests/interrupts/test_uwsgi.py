"""A real uWSGI that loads the application once and forks its workers in C."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import Server
from tests.support.waiting import wait_until

UWSGI = shutil.which("uwsgi", path=str(Path(sys.executable).parent))

APPLICATION = """
    import json, os, sys, time
    sys.path[:0] = {path!r}
    import lualock
    locks = lualock.connect({url!r})
    with locks.lock("warm"):  # while the application loads
        pass
    held = locks.lock("held", ttl=60).acquire()

    def application(environ, start_response):
        me, wrong = str(os.getpid()), []
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            with locks.lock("of-" + me, ttl=1, renew=True, metadata=me) as lease:
                info = locks.lock("of-" + me).inspect()
                if (info.metadata, info.fence) != (me, lease.fence):
                    wrong.append(repr(info))
                if locks.lock("held").try_acquire() is not None:
                    wrong.append("two holders")
        with locks.lock("renewed-" + me, ttl=1, renew=True) as lease:
            time.sleep(2)
            if not lease.held:
                wrong.append("not renewed")
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps([me, held.held, wrong]).encode()]
"""


@contextmanager
def _uwsgi(folder: Path, server: Server) -> Iterator[str]:
    (folder / "application.py").write_text(
        textwrap.dedent(APPLICATION).format(path=sys.path, url=server.url)
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert UWSGI is not None
    command = [
        *(UWSGI, "--http-socket", f"127.0.0.1:{port}", "--master", "--processes", "2"),
        *("--need-app", "--die-on-term", "--wsgi-file", str(folder / "application.py")),
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: _listens(port), wait_s=20, what="uWSGI to start")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answer(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.loads(reply.read())


@pytest.mark.full
@pytest.mark.skipif(UWSGI is None, reason="there is no uWSGI for this platform")
def test_workers_of_a_preloaded_application(one_server: Server, tmp_path: Path) -> None:
    """Each worker reads its own replies, renews its own leases, and has no lease of its parent."""
    with _uwsgi(tmp_path, one_server) as url, ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(_answer, [url, url]))
    assert len({me for me, _, _ in answers}) == 2
    assert [(held, wrong) for _, held, wrong in answers] == [(False, [])] * 2

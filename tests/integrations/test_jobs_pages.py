"""docs/jobs/: each job system's example runs as it stands, with the system's own worker."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules

import pytest

from lualock import integrations
from tests.integrations.workers import apart
from tests.integrations.workers.leash import Leash
from tests.support.servers import BINARIES, Server
from tests.support.waiting import wait_until

FOLDER = apart.ROOT / "docs" / "jobs"
SYSTEMS = sorted(
    module.name for module in iter_modules(integrations.__path__) if module.name[0] != "_"
)
PAGES = [FOLDER / f"{system}.md" for system in SYSTEMS]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
CONSOLE = re.compile(r"^```console\n\$ (.*?)\n```", re.DOTALL | re.MULTILINE)
WAIT_S = 60.0


class Example:
    """A page's program in a folder of its own, and its worker."""

    def __init__(self, page: Path, folder: Path, url: str) -> None:
        self.folder = folder
        self.python = apart.python() if page.stem in apart.SYSTEMS else Path(sys.executable)
        self.environment = os.environ | {
            "REDIS_URL": url,
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{folder}{os.pathsep}{apart.ROOT}",
            "PYTHONUNBUFFERED": "1",
        }
        text = page.read_text("utf-8")
        self.tasks, self.enqueue = PYTHON.findall(text)
        (command,) = CONSOLE.findall(text)
        (folder / "tasks.py").write_text(self.tasks, "utf-8")
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.worker = subprocess.Popen(
                shlex.split(command.replace("$REDIS_URL", url)),
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")


@pytest.fixture
def server_url() -> Iterator[str]:
    """The URL of a server of one page: the jobs of all pages share a lock, which a killed worker
    keeps."""
    server = Server("jobs-pages", next(iter(BINARIES.values())))
    try:
        with Leash() as leash:
            leash.add(server.process)
            yield server.tcp_url
    finally:
        server.close()


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_example(page: Path, server_url: str, tmp_path: Path) -> None:
    """The worker that a page starts runs what the page enqueues."""
    with Leash() as leash:
        example = Example(page, tmp_path, server_url)
        leash.add(example.worker)
        done = subprocess.run(
            [example.python, "-c", example.enqueue],
            cwd=example.folder,
            env=example.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "already" not in done.stdout
        try:
            wait_until(lambda: "rebuilt 7" in example.said(), wait_s=WAIT_S, what="the job has run")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{example.said()[-3000:]}") from None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_lines_are_few(page: Path) -> None:
    """The lines to paste are at most ten for a job, without imports and blank lines."""
    lines = [
        line
        for line in PYTHON.findall(page.read_text("utf-8"))[0].splitlines()
        if line and not re.match(r"(import|from) ", line)
    ]
    assert len(lines) <= 10


def test_the_index_knows_all() -> None:
    """The index has each system's page, in its table and in its contents."""
    index = (FOLDER / "index.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| \[.+?\]\((\w+)\.md\)", index, re.MULTILINE)) == SYSTEMS
    assert set(SYSTEMS) <= set(index.splitlines())

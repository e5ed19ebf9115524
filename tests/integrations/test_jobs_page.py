"""docs/jobs/: each system's example runs as it stands, with the system's own worker."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integrations.workers import apart
from tests.integrations.workers.leash import Leash
from tests.support.servers import BINARIES, Server
from tests.support.waiting import wait_until

FOLDER = apart.ROOT / "docs" / "jobs"
SYSTEMS = "arq", "celery", "dramatiq", "huey", "rq", "saq", "taskiq"
PAGES = {name: (FOLDER / f"{name}.md").read_text("utf-8") for name in SYSTEMS}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
CONSOLE = re.compile(r"^```console\n\$ (.*?)\n```", re.DOTALL | re.MULTILINE)
WAIT_S = 60.0


class Example:
    """A page's program in a folder of its own, and its worker."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.folder = folder
        self.python = apart.python() if name in apart.SYSTEMS else Path(sys.executable)
        self.environment = os.environ | {
            "REDIS_URL": url,
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{folder}{os.pathsep}{apart.ROOT}",
            "PYTHONUNBUFFERED": "1",
        }
        self.tasks, self.enqueue = PYTHON.findall(PAGES[name])
        (command,) = CONSOLE.findall(PAGES[name])
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


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Example]]:
    """All examples, each with its worker, side by side."""
    server = Server("jobs-page", next(iter(BINARIES.values())))
    with Leash() as leash:
        leash.add(server.process)
        made: dict[str, Example] = {}
        for name in PAGES:
            made[name] = Example(name, tmp_path_factory.mktemp(name), server.tcp_url)
            leash.add(made[name].worker)
        yield made
    server.close()


@pytest.mark.full
@pytest.mark.parametrize("name", list(PAGES))
def test_example(examples: dict[str, Example], name: str) -> None:
    """The worker that a page starts runs what the page enqueues."""
    example = examples[name]
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


def test_the_lines_are_few() -> None:
    """The lines to paste are at most ten for a job, without imports and blank lines."""
    for name, section in PAGES.items():
        lines = [
            line
            for line in PYTHON.findall(section)[0].splitlines()
            if line and not re.match(r"(import|from) ", line)
        ]
        assert len(lines) <= 10, name


def test_the_table_knows_all() -> None:
    """The table has each system's page."""
    page = (FOLDER / "index.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| \[.+?\]\((\w+)\.md", page, re.MULTILINE)) == sorted(SYSTEMS)

"""The tutorial: its programs and commands, typed as they stand, print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.test_docs import ROOT
from tests.support.servers import Server

PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
STEP = re.compile(r"^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def shape(line: str) -> str:
    """Return a line without what differs from run to run."""
    return re.sub(r"[\d.]+", "N", re.sub(r"\S+:\d+:MainThread", "HOLDER", line))


@pytest.mark.slow
def test_tutorial(one_server: Server, tmp_path: Path) -> None:
    """Each program is saved, each command runs in one shell, and the output is the one shown."""
    commands, shown = ["set -m"], []
    for kind, text in STEP.findall(PAGE):
        if kind == "python":
            (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, "utf-8")
        elif "pip install" not in text:
            commands += re.findall(r"^\$ (.*)", text, re.MULTILINE)
            shown += re.findall(r"^[^$].*", text, re.MULTILINE)
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env=os.environ | {"LUALOCK_URL": one_server.url, "PATH": paths, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = ran.stdout.splitlines()
    assert [shape(line) for line in printed] == [shape(line) for line in shown], ran.stderr
    assert int(printed[0]) < int(printed[1]) == int(shown[1]) == 200

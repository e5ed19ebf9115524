"""The library in a program that is one file: a zip file, or made by PyInstaller."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipapp
from pathlib import Path

import pytest

import lualock
from lualock import embedded
from lualock.errors import EmbeddedUnavailable
from lualock.scripts import ScriptError, load
from tests.support.servers import Server

PACKAGE = Path(lualock.__file__).parent

PROGRAM = """
import asyncio, sys
import lualock, lualock.fencing
from lualock import aio, jobs
from lualock.scripts import every

def job(): return "ran"

async def main():
    async with aio.connect().lock("x", ttl=5) as lease:
        return lease.held

with lualock.connect() as locks:
    with locks.lock("x", ttl=5):
        pass
    assert asyncio.run(main())
    assert locks.job(ttl=5)(job)() == "ran"
    assert all((every(), lualock.fencing.SOURCE, lualock.acl_rule()))
    print("locked", lualock.__file__)
"""


def run(*command: str, **settings: str) -> str:
    """Run a program elsewhere and return its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LUALOCK", "PYTHONP"))}
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd="/", env=environment | settings
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program and the library in a zip file."""
    folder = tmp_path_factory.mktemp("zipped")
    unused = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "program" / "lualock", ignore=unused)
    (folder / "program" / "__main__.py").write_text(PROGRAM)
    zipapp.create_archive(folder / "program", folder / "program.pyz")
    return str(folder / "program.pyz")


def test_a_zip_file(zipped: str, one_server: Server) -> None:
    """Python imports the library from a zip file, its scripts with it."""
    output = run(sys.executable, "-W", "error", zipped, LUALOCK_URL=one_server.url)
    assert output.startswith(f"locked {zipped}")


def test_the_embedded_server_of_a_zip_file(zipped: str, tmp_path: Path) -> None:
    """The supervisor of the embedded server runs, though it is no file."""
    folder = str(tmp_path / "server")
    settings = {"LUALOCK_URL": "embedded://", "LUALOCK_EMBEDDED_DIR": folder}
    assert run(sys.executable, zipped, **settings).startswith("locked")


def test_a_frozen_program_has_no_embedded_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would start itself as the supervisor, and so is refused with what to do."""
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", str(tmp_path / "server"))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(EmbeddedUnavailable, match=r"frozen program has none\). Pass the URL"):
        embedded.start()


def test_missing_scripts_are_named(tmp_path: Path) -> None:
    """A program that was made without the data files says so when it is imported."""
    with pytest.raises(ScriptError, match=r"there is none in .*--collect-data lualock"):
        load(tmp_path / "no such folder")


@pytest.mark.full
def test_pyinstaller(tmp_path: Path, one_server: Server) -> None:
    """PyInstaller finds the rooms that load on first use, and by the hook the scripts."""
    home = tmp_path / "fresh"
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    root = str(PACKAGE.parent)
    install = "-m", "pip", "install", "--quiet", "--disable-pip-version-check"
    found = subprocess.run([python, *install, "pyinstaller>=6", root], capture_output=True)
    if found.returncode:
        pytest.skip("PyInstaller cannot be installed here")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    made = f"--workpath={tmp_path}/work", f"--specpath={tmp_path}", f"--distpath={tmp_path}/made"
    run(python, "-m", "PyInstaller", "--onefile", "--log-level=ERROR", *made, str(program))
    output = run(str(tmp_path / "made" / "program"), LUALOCK_URL=one_server.url)
    assert re.match("locked .*_MEI", output)

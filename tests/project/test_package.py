"""The wheel, built and installed in a fresh environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lualock
from lualock.scripts import every
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_the_wheel_works_in_a_fresh_environment(tmp_path: Path, one_server: Server) -> None:
    """The wheel has scripts and py.typed, and takes a lock without the checkout."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"lualock/scripts/{path}.lua" for path in every()} <= names
    assert "lualock/py.typed" in names
    assert not any(name.startswith(("tests", "bench", "demo")) for name in names)

    home = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = home / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import importlib.metadata, lualock, sys\n"
        "assert lualock.__file__.startswith(sys.prefix)\n"
        "assert lualock.__version__ == importlib.metadata.version('lualock')\n"
        "with lualock.connect().lock('x') as lease: print(lease.held)\n"
    )
    environment = {"PATH": os.environ["PATH"], "LUALOCK_URL": one_server.url}
    done = subprocess.run(
        [python, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\n"


def test_the_version_is_the_same_everywhere() -> None:
    """The package and its metadata have the same version."""
    assert f'version = "{lualock.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {lualock.__version__}" in (ROOT / "CHANGELOG.md").read_text()

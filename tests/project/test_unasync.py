"""The threads API is generated from the asyncio API."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _unasync(root: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(root / "tools/unasync.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_threads_api_is_current() -> None:
    """The committed files are what the tool generates."""
    assert _unasync(ROOT, "--check") == (0, "")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return the root of a copy of both APIs and the tool."""
    for folder in ("lualock/aio", "lualock/_sync", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in ("lualock/__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_stale_file_is_found_and_mended(copy: Path) -> None:
    """The check names a file that was changed, is missing, or has no source; a run mends it."""
    api = copy / "lualock/_sync"
    _edit(api / "lease.py", "A held lock.", "A held lock!")
    (api / "locks.py").unlink()
    (api / "extra.py").write_text("")
    _edit(copy / "lualock/aio/lock.py", "Never waits.", "It never waits.")
    code, output = _unasync(copy, "--check")
    names = [line.split()[0] for line in output.splitlines()]
    stale = ("extra", "lease", "lock", "locks")
    assert (code, names) == (1, [f"lualock/_sync/{name}.py" for name in stale])
    assert _unasync(copy) == (0, "")
    assert _unasync(copy, "--check") == (0, "")
    assert "It never waits." in (api / "lock.py").read_text()


def test_what_only_asyncio_has_must_be_marked(copy: Path) -> None:
    """The tool refuses text of asyncio that no rule changes and no mark leaves out."""
    lease = copy / "lualock/aio/lease.py"
    _edit(
        lease, "        # async only:\n", "        await asyncio.sleep(0)\n        # async only:\n"
    )
    code, output = _unasync(copy)
    assert (code, "no rule makes this fit for threads: asyncio.sleep(0)" in output) == (1, True)


def test_a_rule_without_a_use_is_refused(copy: Path) -> None:
    """A rule that matches nothing any more is named, so that the list stays short."""
    _edit(copy / "tools/unasync.py", "    # Words.\n", '    (r"no such words", ""),\n')
    code, output = _unasync(copy, "--check")
    assert (code, "no such words" in output) == (1, True)

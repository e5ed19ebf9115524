"""A folder for the embedded server of a test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder for the server; it does not exist at the beginning, and must not at the
    end."""
    top = tempfile.mkdtemp(dir="/tmp", prefix="lle-")
    path = Path(top, "e")
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", str(path))
    yield path
    try:
        wait_until(lambda: not path.exists(), wait_s=10, what=f"{path} is left on disk")
    finally:
        shutil.rmtree(top)

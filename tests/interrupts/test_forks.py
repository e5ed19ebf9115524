"""Forks in C, which run no hook of Python: uWSGI that preloads the application."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.forked import CASES
from tests.support.servers import Server
from tests.support.tiers import full

LONG = ("event_loops", "renewal", "waiting")


@pytest.mark.parametrize("case", [*sorted(CASES.keys() - LONG), *full(*LONG)])
def test_a_fork_without_hooks(one_server: Server, case: str) -> None:
    """A child that C code forked opens its own connections, and owns no lease of its parent."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.forked", case, one_server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "ok\n"), ended.stderr

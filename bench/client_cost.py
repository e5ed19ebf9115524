"""What a lock costs the client: the work in Python, and the calls of the kernel.

The work is counted, not timed, so that it is the same on every machine. Python's own tracing counts
bytecode instructions and calls of C functions in the calling thread. strace, if it is installed,
counts system calls in the whole process. The work inside C functions (packing, parsing, the kernel)
is in the times of the other scenarios.

"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from bench import rivals, uncontended
from bench.setting import Setting, Targets

COUNTED = 20  # pairs, after one that warms up
TRACED = 400  # pairs under strace
TRACE_LIMIT_S = 30.0
MARK = 2**22 + 1  # no process has this number, so no other code makes this system call
KEPT = (
    *(rivals.LUALOCK, rivals.RENEWED, rivals.SETNX, rivals.PLAIN),
    *(rivals.REDIS_PY, rivals.PYTHON_REDIS_LOCK),
)

TITLE = "what it costs the client"
WORDS = __doc__
MISSING = "not counted"
COLUMNS = (
    ("a pair", "rival"),
    ("bytecodes", "bytecodes:,.0f"),
    ("calls of Python functions", "calls:,.0f"),
    ("of C functions", "c_calls:,.0f"),
    ("system calls", "system_calls:.1f"),
)


@dataclass(frozen=True)
class Row:
    """Means of some pairs; ``system_calls`` is ``None`` without strace."""

    rival: str
    bytecodes: float
    calls: float
    c_calls: float
    system_calls: float | None


def run(setting: Setting) -> list[Row]:
    """Measure one rival after the other; counts need no rounds."""
    url = setting.server.tcp_url
    kept = [name for name in setting.sync if name in KEPT]
    traced = system_calls(url, kept)
    with uncontended.ways(replace(setting, sync=kept), url) as ways:
        return [
            Row(name, *counted(ways[name]), traced.get(name))
            for name in (*kept, uncontended.PING)
            if name in ways
        ]


def counted(pair: Callable[[], object]) -> tuple[float, float, float]:
    """Return bytecodes, calls of Python functions and calls of C functions a pair."""
    bytecodes = calls = c_calls = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal bytecodes, calls
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            calls += 1
        elif event == "opcode":
            bytecodes += 1
        return trace

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal c_calls
        c_calls += event == "c_call"

    pair()
    for tool, hook in ((sys.settrace, trace), (sys.setprofile, profile)):
        tool(hook)
        try:
            for _ in range(COUNTED):
                pair()
        finally:
            tool(None)
    # The call that ends the tracing does not count.
    return bytecodes / COUNTED, calls / COUNTED, (c_calls - 1) / COUNTED


def system_calls(url: str, names: list[str]) -> dict[str, float]:
    """Return system calls a pair; nothing without strace, or if tracing is not allowed."""
    if shutil.which("strace") is None:
        return {}
    with tempfile.NamedTemporaryFile("r", prefix="lualock-strace-", dir="/tmp") as log:
        command = ["strace", "-f", "-o", log.name, sys.executable, "-m", "bench.client_cost"]
        try:
            subprocess.run(
                [*command, url, str(TRACED), *names],
                check=True,
                timeout=TRACE_LIMIT_S,
                capture_output=True,
            )
        except subprocess.SubprocessError:
            return {}
        # Between two marks, a line is a call, or the rest of an interrupted one.
        calls = [line for line in log if " resumed>" not in line and "(" in line]
    marks = [at for at, line in enumerate(calls) if f"getpgid({MARK})" in line]
    return {
        name: (end - begin - 1) / TRACED
        for name, begin, end in zip(names, marks[::2], marks[1::2], strict=True)
    }


def targets(rows: list[Row]) -> Targets:
    """Return each target: its claim, the figure of this run, and whether it is met."""
    ours = next(row for row in rows if row.rival == rivals.LUALOCK)
    theirs = [row for row in rows if row.rival == rivals.REDIS_PY]
    return [
        (
            "redis-py's Lock runs at least twice the bytecodes",
            row.bytecodes / ours.bytecodes,
            row.bytecodes >= 2 * ours.bytecodes,
        )
        for row in theirs
    ]


def main() -> None:
    """Run the traced program: ``python -m bench.client_cost URL PAIRS RIVAL...``."""
    _, url, pairs, *names = sys.argv
    for name in names:
        rival = rivals.sync(name, url)
        pair = rival.pair("traced")
        pair()
        _mark()
        for _ in range(int(pairs)):
            pair()
        _mark()
        rival.close()


def _mark() -> None:
    with contextlib.suppress(OSError):
        os.getpgid(MARK)


if __name__ == "__main__":
    main()

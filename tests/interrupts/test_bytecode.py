"""Loops whose backward jump no handler guards, in Python 3.11 and 3.12."""

from __future__ import annotations

import dis
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import lualock

SOURCE = Path(lualock.__file__).parent

NAKED = """
def naked(work):
    try:
        while True:
            if work():
                continue
            work()
    finally:
        work()
"""


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _unguarded(source: str, name: str) -> list[str]:
    """Return where a signal handler's exception skips ``except`` and ``finally``.

    The interpreter runs signal handlers after a backward jump, and then uses the exception handlers
    of the instruction *before* the loop's head. If the loop stands first in its ``try``, that
    instruction is outside. A statement between ``try:`` and the loop prevents that.
    """
    found = []
    for code in _codes(compile(source, name, "exec")):
        table = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]  # from 3.11
        for step in dis.get_instructions(code):
            back = "JUMP" in step.opname and isinstance(step.argval, int)
            if not back or step.argval > step.offset or "NO_INTERRUPT" in step.opname:
                continue
            head = {one.target for one in table if one.start <= step.argval < one.end}
            before = {one.target for one in table if one.start <= step.argval - 2 < one.end}
            if head - before:
                found.append(f"{name}: {code.co_name}, instruction {step.offset}")
    return found


@pytest.mark.skipif(
    sys.version_info[:2] not in ((3, 11), (3, 12)), reason="other versions have no such gap"
)
def test_every_backward_jump_is_guarded() -> None:
    """No loop of the library stands first in its ``try``, and the scan finds one that does."""
    assert _unguarded(NAKED, "naked")
    for path in sorted(SOURCE.rglob("*.py")):
        assert _unguarded(path.read_text(), str(path.relative_to(SOURCE))) == []


def test_no_condition_is_entered() -> None:
    """A condition has a lock of its own that ``with`` enters: entering the condition runs Python
    code, where an exception of a signal handler leaves the lock taken for good."""
    entered = []
    for file in sorted(SOURCE.rglob("*.py")):
        text = file.read_text("utf-8")
        for name in re.findall(r"(\w+) = threading\.Condition\(", text):
            entered += [f"{file.name}: {name}"] * text.count(f"with self.{name}:")
        assert "threading.Condition()" not in text, f"{file}: a condition without a lock of its own"
    assert entered == []


def test_no_event_or_future_that_enters_a_condition() -> None:
    """The library waits for its own ``Event``: an event of ``threading`` and a future of
    ``concurrent.futures`` enter a condition each time."""
    for file in sorted(SOURCE.rglob("*.py")):
        assert not re.search(r"threading\.Event\(|futures\.Future\(", file.read_text("utf-8")), file

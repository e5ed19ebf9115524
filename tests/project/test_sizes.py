"""The sizes of functions, modules and scripts: what is longer says why."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.test_layers import ROOT

FUNCTION_LINES = 60
"""At most so many lines has a function, without its docstring."""

MODULE_LINES = {".py": 400, ".lua": 160}
"""At most so many lines has a file, unless its docstring or header says why."""

REASON = re.compile(r"^(?:-- )?Long because \w", re.MULTILINE)
"""How the sentence with the reason begins: its line, in the docstring or the header."""

FILES = sorted(path for path in ROOT.rglob("*") if path.suffix in MODULE_LINES)


def _functions(source: str) -> Iterator[tuple[str, int]]:
    """Yield each function's name and its number of lines without the docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
            yield node.name, lines


def _says_why(path: Path, text: str) -> bool:
    """Return whether the file's docstring or header has the sentence with the reason."""
    if path.suffix == ".py":
        beginning = ast.get_docstring(ast.parse(text)) or ""
    else:
        beginning = text.partition("\n\n")[0]
    return REASON.search(beginning) is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sizes(path: Path) -> None:
    """No function has more lines than :data:`FUNCTION_LINES`; no file has more than its kind may,
    or it says why."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        long = [function for function in _functions(text) if function[1] > FUNCTION_LINES]
        assert not long
    lines = len(text.splitlines())
    assert lines <= MODULE_LINES[path.suffix] or _says_why(path, text), f"{lines} lines"

"""Each number that a page gives for a constant of the code is the value of that constant.

A page writes ``2.5 s (`CLAIM_MS`)``, or a row of a table: the constant, then its value. It is plain
text, so that the number can be read without the site.
"""

from __future__ import annotations

import ast
import operator
import re
from functools import cache
from pathlib import Path

import pytest

from tests.project.test_docs import PAGES, ROOT, name_of

CONSTANTS = re.compile(r"^(?:local )?([A-Z_, ]+)(?:: .+?)? = ([^#\n]+?)(?: +#.*)?$", re.MULTILINE)
IN_TEXT = re.compile(r"([\d.]+(?:\s+[a-z]+)?)\s+\(`([A-Z][A-Z_]+)`\)")
IN_TABLE = re.compile(r"^\| `(?P<name>[A-Z][A-Z_]+)` \| (?P<value>\d[^|]*) \|", re.MULTILINE)
UNITS = {"S": "s", "BYTES": "bytes", "TTLS": "ttls"}
OPERATORS = {ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow}


@cache
def constants() -> dict[str, set[str]]:
    """Return the expressions that each name stands for, in Python and in Lua."""
    found: dict[str, set[str]] = {}
    for path in [*(ROOT / "lualock").rglob("*.py"), *(ROOT / "lualock").rglob("*.lua")]:
        for names, values in CONSTANTS.findall(path.read_text("utf-8")):
            # Several may be set in one line. A value that is no number is never read.
            for name, value in zip(names.split(", "), values.split(", "), strict=False):
                found.setdefault(name, set()).add(value.strip("'"))
    return found


def number(node: ast.expr) -> float:
    """Compute a number that may be written as a product, a quotient or a power."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp):
        result: float = OPERATORS[type(node.op)](number(node.left), number(node.right))
        return result
    raise ValueError(f"{ast.unparse(node)} is not a number")


def value_of(name: str) -> str:
    """Return the value of a constant with its unit, as a page writes it.

    :raises ValueError: there is no such constant, or there are two with different values.
    """
    expressions = {ast.parse(text, mode="eval").body for text in constants().get(name, ())}
    values = {number(expression) for expression in expressions}
    if len(values) != 1:
        raise ValueError(f"the code has {len(values)} values of a constant {name}")
    value, unit = values.pop(), name.rpartition("_")[2]
    if unit == "MS":
        value, unit = value / 1000, "S"
    if unit == "S" and value >= 86_400:
        return f"{value / 86_400:g} days"
    return f"{value:g} {UNITS[unit]}" if unit in UNITS else ast.unparse(expressions.pop())


def given(page: Path) -> list[tuple[str, str]]:
    """Return each constant that a page gives the value of, and that value."""
    text = page.read_text("utf-8")
    found = [(name, " ".join(value.split())) for value, name in IN_TEXT.findall(text)]
    return found + [(row["name"], row["value"]) for row in IN_TABLE.finditer(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if given(page)], ids=name_of)
def test_numbers(page: Path) -> None:
    """Each number beside the name of a constant is what the code says."""
    for name, value in given(page):
        assert value == value_of(name), name


def test_numbers_are_found() -> None:
    """Numbers in sentences and in tables are read, and a name without a constant is noticed."""
    found = dict(given(ROOT / "docs/explanation/waiting.md"))
    assert found.keys() >= {"CLAIM_MS", "CHECK_MAX_S"}
    assert "MAX_CONNECTIONS" in dict(given(ROOT / "docs/reference/settings.md"))
    with pytest.raises(ValueError, match="0 values"):
        value_of("HOLD_ON_S")

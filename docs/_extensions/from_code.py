"""Quote the code in the site, so that each fact is written once.

* The role ``constant`` gives the value and the name of a constant.
* The directive ``constants`` is a table of them; each line of it is ``NAME: what it is``.
* The directive ``scripts`` lists the headers of the Lua scripts in a folder.
"""

from __future__ import annotations

import ast
import operator
import re
from functools import cache
from itertools import takewhile
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

CODE = Path(__file__).parents[2] / "lualock"
PATTERN = re.compile(r"^(?:local )?([A-Z][A-Z_]+)(?:: .+?)? = ([^#\n]+?)(?: +#.*)?$", re.MULTILINE)
UNITS = {"S": "s", "BYTES": "bytes", "TTLS": "ttls"}
OPERATORS = {ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow}


@cache
def constants() -> dict[str, set[str]]:
    """The expressions that the names stand for, in Python and in Lua."""
    found: dict[str, set[str]] = {}
    for path in sorted([*CODE.rglob("*.py"), *CODE.rglob("*.lua")]):
        for name, expression in PATTERN.findall(path.read_text("utf-8")):
            found.setdefault(name, set()).add(expression.strip("'"))
    return found


def number(node: ast.expr) -> float:
    """Compute a number that may be written as a product, a quotient or a power."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](number(node.left), number(node.right))
    raise ValueError(f"{ast.unparse(node)} is not a number")


def value_of(name: str) -> str:
    """Format the value of a constant with its unit.

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
    if unit in UNITS:
        return f"{value:g} {UNITS[unit]}"
    return ast.unparse(expressions.pop())


class ConstantRole(SphinxRole):
    """The value of a constant, and its name."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        try:
            value = value_of(self.text)
        except ValueError as error:
            return [], [self.inliner.reporter.error(str(error), line=self.lineno)]
        return [nodes.Text(f"{value} ("), nodes.literal("", self.text), nodes.Text(")")], []


class ConstantsDirective(SphinxDirective):
    """A table of constants: name, value, meaning."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        rows = ["| constant | value | what it is |", "| --- | --- | --- |"]
        for line in self.content:
            name, _, meaning = line.partition(": ")
            try:
                rows.append(f"| `{name}` | {value_of(name)} | {meaning} |")
            except ValueError as error:
                raise self.error(str(error)) from error
        return self.parse_text_to_nodes("\n".join(rows))


class ScriptsDirective(SphinxDirective):
    """The header of each script in a folder: what it does, and each reply."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text: list[str] = []
        for path in sorted((CODE / self.arguments[0]).glob("*.lua")):
            lines = takewhile(
                lambda line: line.startswith("--"), path.read_text("utf-8").splitlines()
            )
            text += [f"### {path.stem}", "", "```lua", *lines, "```", ""]
        if not text:
            raise self.error(f"there are no scripts in {self.arguments[0]}")
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("constant", ConstantRole())
    app.add_directive("constants", ConstantsDirective)
    app.add_directive("scripts", ScriptsDirective)
    return {"parallel_read_safe": True}

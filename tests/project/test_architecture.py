"""ARCHITECTURE.md and the steps for a new primitive name only what exists: files, functions,
constants, commands, layers."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from tests.project.test_layers import RANK

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
PROSE = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
(STEPS,) = re.findall(
    r"^## How to add a primitive\n.*?(?=^## )",
    (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)
QUOTED = sorted(set(re.findall(r"`([^`]+)`", PROSE + STEPS)))
PYTHON = [*(ROOT / "lualock").rglob("*.py")]


class Names(ast.NodeVisitor):
    """The names that one file defines: of each class its members, and all of them together."""

    def __init__(self, path: Path) -> None:
        self.members: defaultdict[str, set[str]] = defaultdict(set)
        self.bases: dict[str, list[str]] = {}
        self.every: set[str] = set()
        self._classes: list[str] = []
        self.visit(ast.parse(path.read_text("utf-8")))

    def _add(self, name: str) -> None:
        self.every.add(name)
        if self._classes:
            self.members[self._classes[-1]].add(name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._add(node.name)
        self.bases[node.name] = [ast.unparse(base) for base in node.bases]
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._add(node.name)
        self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_arg(self, node: ast.arg) -> None:
        self.every.add(node.arg)

    def visit_alias(self, node: ast.alias) -> None:
        self.every.add(node.asname or node.name)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Store):
            self._add(node.attr)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str | bytes):  # the words of commands and settings
            word = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if word.isidentifier():
                self.every.add(word)


names_of = cache(Names)


@cache
def words() -> set[str]:
    """Return each name of the library's Python, and each word of its Lua without the comments."""
    found = {*dir(builtins), *keyword.kwlist}
    for path in PYTHON:
        found |= names_of(path).every
    for path in (ROOT / "lualock").rglob("*.lua"):
        found |= set(re.findall(r"\w+", re.sub(r"--.*", "", path.read_text("utf-8"))))
    return found


def has_member(name: str, member: str) -> bool:
    """Return whether a class with that name, or a base of it, has that member."""
    for names in map(names_of, PYTHON):
        if member in names.members.get(name, ()):
            return True
        if any(has_member(base, member) for base in names.bases.get(name, ()) if base != name):
            return True
    return False


def exists(quoted: str) -> bool:
    """Return whether what the page quotes exists in this tree."""
    if "<" in quoted or not re.search(r"\w", quoted):
        return True  # the form of a key, or a sign in a message
    if command := re.fullmatch(r"make ([\w-]+)", quoted):
        return (
            re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
        )
    path, _, name = quoted.removesuffix("()").partition(":")
    if "/" in path or re.search(r"\.(py|lua|md)$", path):
        file = next((top / path for top in (ROOT, ROOT / "lualock") if (top / path).exists()), None)
        if file is None or not name:
            return file is not None and not name
        owner, _, member = name.rpartition(".")
        names = names_of(file)
        return member in (names.members[owner] if owner else names.every)
    owner, _, member = path.partition("=")[0].rpartition(".")
    if not owner:
        return member in words()
    modules = [file for file in PYTHON if file.stem == owner]
    return has_member(owner, member) or any(member in names_of(file).every for file in modules)


@pytest.mark.parametrize("quoted", QUOTED)
def test_what_it_names_exists(quoted: str) -> None:
    """Each file, name and command that the page quotes exists."""
    assert exists(quoted)


@pytest.mark.parametrize(
    "wrong",
    [
        "_protocol/nothing.py",
        "_protocol/wait.py:hold_on",
        "_protocol/attempt.py:Attempt.hold_on",
        "aio/lease.py:Lease.acquire",
        "LeaseState.hold_on",
        "errors.hold_on",
        "HOLD_ON_S",
        "make nothing",
        "two words",
    ],
)
def test_a_wrong_name_is_found(wrong: str) -> None:
    """A file, name or command that does not exist is noticed."""
    assert not exists(wrong)


def test_the_example_is_not_built_yet() -> None:
    """The files of the example of a new primitive are those of a primitive that does not exist."""
    files = re.findall(r"\*([\w/]+\.(?:py|lua))\*", STEPS)
    assert len(files) >= 4
    built = [file for file in files if exists(file)]
    assert not built, (
        f"{built} exist: the example of CONTRIBUTING.md is built. Rewrite 'How to add a primitive' "
        "with one that is not"
    )


def test_its_layers_are_those_that_are_checked() -> None:
    """The table of rooms has every room, in the layer that test_layers.py checks."""
    table = {
        room.removesuffix(".py").removesuffix("/"): int(layer)
        for layer, rooms in re.findall(r"^\| (\d) \| ([^|]+) \|", PROSE, re.MULTILINE)
        for room in re.findall(r"`([^`]+)`", rooms)
    }
    assert table == RANK


def test_it_is_short() -> None:
    """The page is a map: it is read in one sitting."""
    assert len(PAGE.splitlines()) <= 320

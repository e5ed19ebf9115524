"""Test programs that use lualock: a pytest plugin, which pytest finds on its own.

``plugin`` has the fixtures, ``kit`` what a test checks and does, ``other_process`` a process that
holds a lock, and ``holder`` the program of that process. Nothing is simulated: the server is real
(``pip install 'lualock[embedded]'``), and so are the processes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lualock.testing.kit import LockKit
    from lualock.testing.other_process import OtherProcess

__all__ = ["LockKit", "OtherProcess"]

_HOME = {"LockKit": "kit", "OtherProcess": "other_process"}


def __getattr__(name: str) -> Any:
    """Load on first use (PEP 562): pytest imports ``plugin`` in each run, also where no test uses
    a lock."""
    if name in _HOME:
        found = globals()[name] = getattr(import_module(f"lualock.testing.{_HOME[name]}"), name)
        return found
    raise AttributeError(f"module 'lualock.testing' has no attribute {name!r}")

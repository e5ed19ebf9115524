# Generated from lualock/aio/__init__.py by `python tools/unasync.py`: edit that file.
"""The threads API: the same names as in ``lualock``, in the same order."""

from lualock._sync.lease import Lease
from lualock._sync.lock import Lock
from lualock._sync.locks import Locks, connect

__all__ = ["Lease", "Lock", "Locks", "connect"]
